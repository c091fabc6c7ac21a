"""From samples to figures, ratios and the printed report. Pure: no process, clock or file.

Rules: a figure is the median of its repeats; a ratio is always "how many times better KOS is", so above 1 is in favour
of KOS, whether the work is a rate or a duration. Only `BEST_OF` count as peers to beat; the other rows are references.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from kos_cluster.services.bench.plan import FULL, Plan
from kos_cluster.services.bench.reports import circumstances

KOS = "kos"
BARE = "bare"
MPI = "mpi"
TLS = "dask-tls"
BEST_OF = ("dask", TLS, "ray", "ipyparallel")  # the peers that KOS's aims name


class Part(enum.StrEnum):
    """Works that are measured in one process, on one cluster."""

    OVERHEAD = "overhead"
    WORK = "work"
    GANGS = "gangs"
    SCALING = "scaling"


class Work(enum.StrEnum):
    """What is measured."""

    SYNC = "sync"
    FEW_SUBMITS = "submits_1000"
    SUBMITS = "submits"
    MAP = "map"
    MAP_CHUNKED = "map_chunked"
    FIRST_RESULT = "first_result"
    MILLISECONDS = "milliseconds"
    TREE = "tree"
    ARGUMENT = "argument"
    BROADCAST = "broadcast"
    RESULT = "result"
    SWEEP = "sweep"
    RECOVERY = "recovery"
    GANG = "gang"
    ALLREDUCE = "allreduce"
    SLEEPS_1 = "sleeps_1"
    SLEEPS_2 = "sleeps_2"
    SLEEPS_4 = "sleeps_4"
    SLEEPS_8 = "sleeps_8"
    SLEEPS_16 = "sleeps_16"


RATE = "1/s"
SECONDS = "s"
SHARE = "of 1"  # of what is possible at best
SLEEPS = {1: Work.SLEEPS_1, 2: Work.SLEEPS_2, 4: Work.SLEEPS_4, 8: Work.SLEEPS_8, 16: Work.SLEEPS_16}  # by daemons
_SHARES = (Work.MILLISECONDS, *SLEEPS.values())
_RATES = (Work.SYNC, Work.FEW_SUBMITS, Work.SUBMITS, Work.MAP, Work.MAP_CHUNKED, Work.TREE)
UNITS = {work: SHARE if work in _SHARES else RATE if work in _RATES else SECONDS for work in Work}

MEANINGS = {
    Work.SYNC: "round trips of a no-op, one after the other",
    Work.FEW_SUBMITS: "1,000 no-ops submitted one by one, then gathered",
    Work.SUBMITS: "5,000 no-ops submitted one by one, then gathered",
    Work.MAP: "no-ops through the system's map, each element a task of its own",
    Work.MAP_CHUNKED: "no-ops through the system's map, as many elements to a task as its users choose",
    Work.FIRST_RESULT: "from a fresh interpreter without a cluster to the first result; lower is better",
    Work.MILLISECONDS: "10,000 tasks of 1 ms of processor time on 4 workers: the share of what 2 cores allow",
    Work.TREE: "no-ops, and pairwise sums of their results up to one: tasks a second",
    Work.ARGUMENT: "an array of 64 MiB to a task on each of 4 workers; lower is better",
    Work.BROADCAST: "an array of 256 MiB to a task on each of 4 nodes; lower is better",
    Work.RESULT: "a result of 100 MiB of one node used on another; lower is better",
    Work.SWEEP: "scikit-learn's GridSearchCV through joblib on 4 workers; lower is better",
    Work.RECOVERY: "from the SIGKILL of one of 4 nodes to the results of 8 tasks of 0.5 s; lower is better",
    Work.GANG: "8 ranks on 4 nodes started, met and ended; lower is better",
    Work.ALLREDUCE: "64 MiB summed over 4 ranks on 2 nodes; lower is better",
    **{
        work: f"tasks that sleep for 10 ms on {daemons} daemons of one slot: the share of the time that a slot sleeps"
        for daemons, work in SLEEPS.items()
    },
}


class Aim(msgspec.Struct, frozen=True, omit_defaults=True):
    """What KOS aims at: `ratio` to the best peer, `tls` to Dask with TLS, `value` by itself.

    `bare`: the bare path at most so many times as fast.
    """

    ratio: float | None = None
    tls: float | None = None
    value: float | None = None
    bare: float | None = None


AIMS = {
    Work.SYNC: Aim(ratio=3, bare=2),
    Work.SUBMITS: Aim(ratio=8),
    Work.MAP: Aim(value=100_000),
    Work.FIRST_RESULT: Aim(value=3),
    Work.MILLISECONDS: Aim(value=0.9),
    Work.BROADCAST: Aim(tls=2),
    Work.RESULT: Aim(ratio=1, tls=2),
    Work.GANG: Aim(ratio=3),
    Work.ALLREDUCE: Aim(ratio=1 / 3),
    **{work: Aim(value=0.9) for work in SLEEPS.values()},
}


class Sample(msgspec.Struct, frozen=True):
    """One measurement: `value` in the work's unit, over `items` tasks."""

    work: Work
    system: str
    value: float
    items: int


class Figure(msgspec.Struct, frozen=True):
    """All measurements of one work on one system."""

    work: Work
    system: str
    median: float
    unit: str
    repeats: list[float]
    items: int  # tasks, or other things that were done, in each repeat; for `sync` in the last


class Ratio(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many times better KOS is than the best peer; `None` where there is none to compare with.

    `bare_over_kos` (for `sync`) is how many round trips the bare path makes in the time of one of KOS's.
    """

    best_peer: str | None
    ratio: float | None
    bare_over_kos: float | None = None


class Report(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    figures: list[Figure]
    ratios: dict[str, Ratio]
    setups: dict[str, str]
    skipped: dict[str, str]  # system -> why it has no figures
    failures: list[str]  # runs that ended early, and what had to be cleared away after them
    machine: dict[str, str | int | list[float]]
    versions: dict[str, str]
    plan: Plan  # how much of each work one repeat had


def figures_of(samples: Iterable[Sample]) -> list[Figure]:
    """Group samples by work and system, in the order of `Work` and of first appearance."""
    groups: dict[tuple[Work, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.work, sample.system), []).append(sample)
    order = list(Work)
    return [
        Figure(
            work=work,
            system=system,
            median=statistics.median(sample.value for sample in group),
            unit=UNITS[work],
            repeats=[sample.value for sample in group],
            items=group[-1].items,
        )
        for (work, system), group in sorted(groups.items(), key=lambda entry: order.index(entry[0][0]))
    ]


def ratios_of(figures: Sequence[Figure]) -> dict[str, Ratio]:
    """The ratio of each work that KOS has a figure for."""
    medians = {(figure.work, figure.system): figure.median for figure in figures}
    return {
        work.value: _ratio(work, {system: value for (of, system), value in medians.items() if of is work})
        for work in Work
        if (work, KOS) in medians
    }


def _ratio(work: Work, medians: dict[str, float]) -> Ratio:
    lower_is_better = UNITS[work] == SECONDS
    own = medians[KOS]
    bare = medians.get(BARE)
    peers = {name: medians[name] for name in (BEST_OF if work is not Work.ALLREDUCE else (MPI,)) if name in medians}
    bare_over_kos = bare / own if work is Work.SYNC and bare is not None else None
    if not peers:
        return Ratio(None, None, bare_over_kos)
    best = min(peers, key=peers.__getitem__) if lower_is_better else max(peers, key=peers.__getitem__)
    return Ratio(best, _times_better(own, peers[best], lower_is_better), bare_over_kos)


def _times_better(own: float, other: float, lower_is_better: bool) -> float:
    return other / own if lower_is_better else own / other


def rendered(report: Report) -> str:
    """The report as text for a terminal."""
    lines: list[str] = []
    for work in Work:
        rows = [figure for figure in report.figures if figure.work is work]
        if rows:
            lines += [f"{work}: {MEANINGS[work]}", *map(_row, rows)]
            if work in report.ratios:
                lines += ["  " + text for text in _comparison(report.ratios[work])]
                lines += ["  " + text for text in judged(work, report)]
            lines.append("")
    lines += ["Set-up:", *(f"  {name:<12} {text}" for name, text in report.setups.items())]
    if report.skipped:
        lines += ["Skipped:", *(f"  {name:<12} {reason}" for name, reason in report.skipped.items())]
    if report.failures:
        lines += ["Trouble:", *(f"  {text}" for text in report.failures)]
    if report.plan != FULL:
        lines.append("Less was done than the words say, as --quick asks for.")
    return "\n".join([*lines, *circumstances(report.machine, report.versions)])


def judged(work: Work, report: Report) -> list[str]:
    """What was aimed at, and whether it was reached; nothing where there is no aim or nothing to judge by."""
    aim, ratio = AIMS.get(work), report.ratios[work]
    if aim is None:
        return []
    medians = {figure.system: figure.median for figure in report.figures if figure.work is work}
    own, tls = medians[KOS], medians.get(TLS)
    lower_is_better = UNITS[work] == SECONDS
    lines = []
    if aim.ratio is not None and ratio.ratio is not None:
        lines.append((f"{aim.ratio:.2g} times as fast as the best peer", ratio.ratio >= aim.ratio))
    if aim.tls is not None and tls is not None:
        times = _times_better(own, tls, lower_is_better)
        lines.append((f"{aim.tls:.2g} times as fast as Dask with TLS (it is {times:.2f})", times >= aim.tls))
    if aim.value is not None:
        reached = own <= aim.value if lower_is_better else own >= aim.value
        lines.append((f"{'at most' if lower_is_better else 'at least'} {aim.value:,g} {UNITS[work]}", reached))
    if aim.bare is not None and ratio.bare_over_kos is not None:
        lines.append((f"the bare path at most {aim.bare:g} times as fast", ratio.bare_over_kos <= aim.bare))
    return [f"Aim: {text}: {'reached' if reached else 'NOT reached'}." for text, reached in lines]


def _row(figure: Figure) -> str:
    low, high = min(figure.repeats), max(figure.repeats)
    spread = f"({number(low)} to {number(high)})"
    items = f"{figure.items:,} tasks" if figure.items > 1 else ""
    return f"  {figure.system:<12} {number(figure.median):>10} {figure.unit:<4} {spread:<22} {items}".rstrip()


def _comparison(ratio: Ratio) -> list[str]:
    lines = []
    if ratio.best_peer is not None and ratio.ratio is not None:
        lines.append(f"KOS is {ratio.ratio:.2f} times as fast as the best peer, {ratio.best_peer}.")
    if ratio.bare_over_kos is not None:
        lines.append(f"The bare path is {ratio.bare_over_kos:.2f} times as fast as KOS.")
    return lines


def number(value: float) -> str:
    """As it is printed: three digits that count, or all that are before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
