"""The tables of `docs/benchmarks.md` and the README that come from a run of `kos bench`, or from what it measures.

`make bench` measures, keeps the runs' reports as JSON beside this, and writes the tables of them anew; a test holds
that they match. So a figure stands there only together with its machine, its versions and its spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from docs.markdown import table
from kos_cluster.services.bench import engines as engines_bench
from kos_cluster.services.bench import memory as memory_bench
from kos_cluster.services.bench import queued as queued_bench
from kos_cluster.services.bench import reports
from kos_cluster.services.bench.figures import (
    AIMS,
    KOS,
    MEANINGS,
    UNITS,
    Figure,
    Report,
    Work,
    judged,
    number,
)
from kos_cluster.services.bench.plan import FULL
from kos_cluster.services.bench.systems import ENTRIES

KEPT = Path(__file__).with_name("figures.json")
KEPT_MEMORY = Path(__file__).with_name("figures-memory.json")
KEPT_ENGINES = Path(__file__).with_name("figures-engines.json")
KEPT_QUEUED = Path(__file__).with_name("figures-queued.json")
TITLES = {"kos": "KOS", "dask": "Dask", "dask-tls": "Dask, TLS", "ray": "Ray", "parsl": "Parsl", "mpi": "MPI"}


def kept() -> Report:
    """The run that the tables tell of."""
    return msgspec.json.decode(KEPT.read_bytes(), type=Report)


def figures() -> str:
    """Every work on every system, the ratios, and what was measured on what."""
    report = kept()
    return "\n\n".join([_medians(report, spread=True), _ratios(report), _taken(report)])


def summary() -> str:
    """The medians alone, with how many times better KOS is than the best peer, and which that is."""
    report = kept()
    return "\n\n".join([_medians(report, spread=False), _taken(report)])


def memory() -> str:
    """What `kos bench memory` measured."""
    report = msgspec.json.decode(KEPT_MEMORY.read_bytes(), type=reports.Report[memory_bench.Figure])
    rows = [["", "GB/s", "beside", "aim"]]
    for figure in report.figures:
        beside, aim = "", ""
        if figure.peer:
            beside = f"{figure.ratio:.2f} times {figure.against} ({_gigabytes(figure.peer)})"
            aim = f"{figure.aim:g} times: {'reached' if figure.ratio >= figure.aim else 'NOT reached'}"
        rows.append([f"{figure.meaning}, {figure.size_bytes >> 20} MiB", _gigabytes(figure.repeats), beside, aim])
    return "\n\n".join([table(rows), _circumstances(report.machine, report.versions)])


def queued() -> str:
    """What `kos bench queued` measured."""
    report = msgspec.json.decode(KEPT_QUEUED.read_bytes(), type=reports.Report[queued_bench.Figure])
    rows = [["tasks that wait", "memory of their program", "bytes a task", "aim"]]
    for figure in report.figures:
        reached = "reached" if figure.each_bytes <= queued_bench.AIM_BYTES else "NOT reached"
        way = f"{figure.tasks:,} by {queued_bench.WAYS[figure.way]}"
        grown = f"{figure.grown_bytes / 1e6:,.0f} MB"
        rows.append([way, grown, f"{figure.each_bytes:.0f}", f"{queued_bench.AIM_BYTES}: {reached}"])
    return "\n\n".join([table(rows), _circumstances(report.machine, report.versions)])


def engines() -> str:
    """What `kos bench engines` measured."""
    report = msgspec.json.decode(KEPT_ENGINES.read_bytes(), type=reports.Report[engines_bench.Figure])
    rows = [["", "median", "beside", "aim"]]
    rows += [[engines_bench.MEANINGS[figure.name], *engines_bench.told(figure)] for figure in report.figures]
    return "\n\n".join([table(rows), _circumstances(report.machine, report.versions)])


def works() -> str:
    """What is measured."""
    return table([["work", "what", "unit"], *([f"`{work}`", MEANINGS[work], UNITS[work]] for work in Work)])


def setups() -> str:
    """How each system is set up."""
    rows = [["system", "set-up", "does not have"]]
    for entry in ENTRIES.values():
        rows.append([_title(entry.name), entry.setup, ", ".join(f"`{work}`" for work in entry.lacks)])
    return table(rows)


def _medians(report: Report, *, spread: bool) -> str:
    systems = list(dict.fromkeys(figure.system for figure in report.figures))
    rows = [["work", *map(_title, systems), *([] if spread else ["KOS is"])]]
    for work in _works(report.figures):
        of = {figure.system: figure for figure in report.figures if figure.work is work}
        cells = [_cell(of[system], spread) if system in of else "" for system in systems]
        ratio = report.ratios[work]
        told = f"{_times(ratio.ratio)} x {_title(ratio.best_peer)}" if ratio.ratio and ratio.best_peer else ""
        rows.append([f"`{work}`, {UNITS[work]}", *cells, *([] if spread else [told])])
    return table(rows)


def _ratios(report: Report) -> str:
    rows = [["work", "best peer", "KOS is", "aim"]]
    for work in _works(report.figures):
        ratio = report.ratios[work]
        told = " ".join(text.removeprefix("Aim: ") for text in judged(work, report))
        if ratio.ratio is not None and ratio.best_peer is not None:
            rows.append([f"`{work}`", _title(ratio.best_peer), f"{ratio.ratio:.2f} times as fast", told])
        elif work in AIMS:
            own = next(figure for figure in report.figures if figure.work is work and figure.system == KOS)
            rows.append([f"`{work}`", "", f"{number(own.median)} {own.unit}", told])
        if ratio.bare_over_kos is not None:
            rows.append([f"`{work}`", "the bare path", f"{ratio.bare_over_kos:.2f} times as slow", ""])
    return table(rows)


def _gigabytes(rates: Sequence[float]) -> str:
    """The median of these bytes a second, and their range."""
    low, middle, high = (number(rate / 1e9) for rate in (min(rates), statistics.median(rates), max(rates)))
    return f"{middle} ({low} to {high})" if len(rates) > 1 else middle


def _circumstances(about: Mapping[str, str | int | list[float]], versions: Mapping[str, str]) -> str:
    load = about["load"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    machine = f"{about['cores']} cores ({about['cpu']}, Linux {about['kernel']})"
    return f"{machine}, load {load[0] if isinstance(load, list) else load} at the start; {told}."


def _taken(report: Report) -> str:
    repeats = max(len(figure.repeats) for figure in report.figures)
    told = [
        f"Medians of {repeats} interleaved repeats." if repeats > 1 else "One repeat.",
        "In 1/s, and of 1, more is better; in s less is.",
        _circumstances(report.machine, report.versions),
    ]
    if report.plan != FULL:
        told.append("Less was done than the table of works says (`--quick`): this run is for a first look.")
    told += [f"Not measured: {_title(system)} ({why})." for system, why in report.skipped.items()]
    told += [f"Trouble: {text}." for text in report.failures]
    return " ".join(told).replace("|", "\\|").replace("\n", " ")


def _times(ratio: float) -> str:
    """Two digits, and no exponent."""
    return f"{ratio:.2g}" if ratio < 99.5 else f"{ratio:.0f}"


def _title(system: str) -> str:
    return TITLES.get(system, system)


def _cell(figure: Figure, spread: bool) -> str:
    low, high = min(figure.repeats), max(figure.repeats)
    if not spread or len(figure.repeats) == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(low)} to {number(high)})"


def _works(figures: Sequence[Figure]) -> list[Work]:
    return [work for work in Work if any(figure.work is work and figure.system == KOS for figure in figures)]
