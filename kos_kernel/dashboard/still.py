"""The monitor as a picture and as text: what is kept in the notebook, and shown where there is no live one.

Theory of operation. A notebook's file keeps the widget's output only as the id of a widget, which is nothing without
its kernel. So a second output stands below it, which is made anew every few seconds: an SVG in HTML, an SVG alone, and
text, of which a reader shows the best that it can. While the live monitor is in the output above, a style hides the
picture; else it hides that output, which can only say that there is no such widget.

Rules: no script, and no address of anything outside the file. Limits: `NODES_LIMIT` nodes and `JOBS_LIMIT` jobs.
"""

from __future__ import annotations

import io
import time
from html import escape

from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.snapshot import CANCELLED, RUNNING, JobSight, NodeSight

NODES_LIMIT = 12
JOBS_LIMIT = 8
WIDTH_PX = 760
TEXT_COLUMNS = 100
_ROW_PX = 24
_GOOD, _WARN, _BAD, _ACCENT = "#1a7f37", "#8a5a00", "#cf222e", "#0969da"
_COLOURS = {"alive": _GOOD, "suspect": _WARN, "dead": _BAD, "done": _GOOD, "failed": _BAD, "cancelled": _WARN}
# The live monitor hides the picture below it; without one the picture hides the output above it.
_STYLE = (
    ".jp-OutputArea-child:has(.kos-monitor) + .jp-OutputArea-child:has(.kos-still),"
    ".jp-OutputArea-child:not(:has(.kos-monitor)):has(+ .jp-OutputArea-child .kos-still) { display: none; }"
)


def bundle(model: Model) -> dict[str, str]:
    """The mime bundle of the picture."""
    picture = svg(model)
    return {
        "text/html": f'<style>{_STYLE}</style><div class="kos-still">{picture}</div>',
        "image/svg+xml": picture,
        "text/plain": text(model),
    }


def text(model: Model) -> str:
    """What `kos top` would show now, without colours."""
    from rich.console import Console

    from kos_cluster.cli.topview import view

    out = io.StringIO()
    console = Console(file=out, width=TEXT_COLUMNS, color_system=None, force_jupyter=False)
    console.print(view(model, NODES_LIMIT * 2))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def svg(model: Model) -> str:
    """The picture: the cluster, its nodes, its newest jobs."""
    jobs = sorted(model.jobs.values(), key=lambda job: (job.state != RUNNING, -job.since_s))[:JOBS_LIMIT]
    nodes = model.nodes[:NODES_LIMIT]
    parts = [_head(model)]
    y = 96
    for node in nodes:
        parts.append(_node(node, y))
        y += _ROW_PX
    if len(model.nodes) > len(nodes):
        parts.append(_text(16, y + 16, f"and {len(model.nodes) - len(nodes)} more nodes", "soft"))
        y += _ROW_PX
    y += 12
    for job in jobs:
        parts.append(_job(job, y))
        y += _ROW_PX
    height = y + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" '
        f'height="{height}" style="max-width:100%" role="img" aria-label="{escape(_title(model))}" '
        'font-family="system-ui, sans-serif" font-size="13">'
        "<style>.soft{fill:#59636e}.strong{font-weight:600}</style>"
        f'<rect x="0.5" y="0.5" width="{WIDTH_PX - 1}" height="{height - 1}" rx="10" fill="#fff" stroke="#d1d9e0"/>'
        f"{''.join(parts)}</svg>"
    )


def _title(model: Model) -> str:
    return f"KOS monitor of cluster {model.cluster}: {model.totals.up} of {model.totals.nodes} nodes alive"


def _head(model: Model) -> str:
    totals = model.totals
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(model.at_s))
    tiles = (
        ("Nodes", f"{totals.up} of {totals.nodes}"),
        ("Slots busy", f"{totals.busy} of {totals.slots}"),
        ("CPU", f"{totals.cpu_share:.0%}"),
        ("Memory", f"{totals.memory_share:.0%}"),
        ("Tasks done", f"{totals.done:,}"),
    )
    parts = [
        _text(16, 26, f"KOS · {model.cluster}", "strong"),
        _text(WIDTH_PX - 16, 26, f"as it was at {when}", "soft", anchor="end"),
    ]
    for place, (name, value) in enumerate(tiles):
        x = 16 + place * (WIDTH_PX - 32) // len(tiles)
        parts += [_text(x, 52, name, "soft"), _text(x, 74, value, "strong")]
    return "".join(parts)


def _node(node: NodeSight, y: int) -> str:
    notes = ["coordinator"] if node.coordinator else ["voter"] if node.voter else []
    notes += ["drained"] if node.drained else []
    parts = [
        _dot(22, y + 12, _COLOURS.get(str(node.state), "#59636e")),
        _text(34, y + 16, node.name, "strong"),
        _text(150, y + 16, ", ".join([str(node.state), *notes]), "soft"),
    ]
    if node.up:
        shares = (("slots", node.busy_share), ("CPU", node.cpu_share), ("memory", node.memory_share))
        for place, (name, share) in enumerate(shares):
            x = 300 + place * 150
            parts += [_bar(x, y + 9, 50, [(share, _ACCENT)]), _text(x + 60, y + 16, f"{share:.0%} {name}", "soft")]
    return "".join(parts)


def _job(job: JobSight, y: int) -> str:
    total = job.total or 1
    not_done = _WARN if job.state == CANCELLED else _BAD
    shares = [(job.done / total, _GOOD), (job.failed / total, not_done), (job.running / total, _ACCENT)]
    counts = f"{job.done:,} of {job.total:,}" + (f", {job.reruns:,} rerun" if job.reruns else "")
    return "".join(
        (
            _dot(22, y + 12, _COLOURS.get(job.state, _ACCENT)),
            _text(34, y + 16, job.name[:40], "strong"),
            _text(330, y + 16, job.state, "soft"),
            _bar(406, y + 9, 160, shares),
            _text(576, y + 16, counts, "soft"),
        )
    )


def _text(x: int, y: int, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _dot(x: int, y: int, colour: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'


def _bar(x: int, y: int, width: int, shares: list[tuple[float, str]]) -> str:
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="8" rx="4" fill="#eaeef2"/>']
    begin = float(x)
    for share, colour in shares:
        length = max(0.0, min(width * share, x + width - begin))
        parts.append(f'<rect x="{begin:.1f}" y="{y}" width="{length:.1f}" height="8" rx="2" fill="{colour}"/>')
        begin += length
    return "".join(parts)
