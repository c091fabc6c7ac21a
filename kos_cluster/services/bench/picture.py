"""The figures as a picture: for each work, how many times slower than KOS each system is.

Rules: a logarithmic axis, with KOS at 1 and what is faster on its left. The picture's form is told by its file's
ending. matplotlib is loaded only when something is drawn.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kos_cluster.errors import UsageError
from kos_cluster.services.bench.figures import KOS, SECONDS, UNITS, Report, Work

FORMS = (".svg", ".png", ".pdf")
ROW_INCHES = 0.34


def check(target: Path) -> None:
    """Raises UsageError when such a picture cannot be drawn here."""
    if target.suffix not in FORMS:
        raise UsageError(f"{target.name} is not a picture's name.", f"End it in one of {', '.join(FORMS)}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("A picture needs matplotlib.", "Type: pip install matplotlib")


def draw(report: Report, target: Path) -> None:
    """Draw the report into a file."""
    import matplotlib.figure

    rows = times_slower(report)
    systems = list(dict.fromkeys(system for row in rows.values() for system in row))
    figure = matplotlib.figure.Figure(figsize=(8, 1 + ROW_INCHES * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    for system in systems:
        points = [(row[system], place) for place, row in enumerate(rows.values()) if system in row]
        axes.plot([x for x, _ in points], [y for _, y in points], "o", label=system)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("times slower than KOS (left of the line: faster)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(target)


def times_slower(report: Report) -> dict[Work, dict[str, float]]:
    """Of each work that others were measured on, too."""
    medians = {(figure.work, figure.system): figure.median for figure in report.figures}
    rows: dict[Work, dict[str, float]] = {}
    for (work, system), median in medians.items():
        own = medians.get((work, KOS))
        if system != KOS and own:
            rows.setdefault(work, {})[system] = median / own if UNITS[work] == SECONDS else own / median
    return rows
