"""From samples of the control plane to figures, aims and the printed report. Pure: no process, clock or file.

Rules: a quantile is the smallest sample that at least this share of all do not exceed, so it is one that was measured.
An aim that was not reached is printed as such.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from kos_cluster.services.bench.reports import circumstances

SYSTEM = "kos"


class Work(enum.StrEnum):
    """What is measured."""

    FAILOVER = "failover"
    DETECTION_LAN = "detection_lan"
    DETECTION_FAST = "detection_fast"
    FIRST_TASK = "first_task"
    WRITES = "writes"
    READS = "reads"
    MEMORY = "memory"
    IDLE_CPU = "idle_cpu"
    COORDINATOR_CPU = "coordinator_cpu"
    SUSPICIONS = "suspicions"
    DEATHS = "deaths"
    ELECTIONS = "elections"


UNITS = {
    Work.FAILOVER: "s",
    Work.DETECTION_LAN: "s",
    Work.DETECTION_FAST: "s",
    Work.FIRST_TASK: "s",
    Work.WRITES: "1/s",
    Work.READS: "1/s",
    Work.MEMORY: "MB",
    Work.IDLE_CPU: "%",
    Work.COORDINATOR_CPU: "%",
    Work.SUSPICIONS: "in all",
    Work.DEATHS: "in all",
    Work.ELECTIONS: "in all",
}

MEANINGS = {
    Work.FAILOVER: "from SIGKILL of the coordinator to the next proposal committed",
    Work.DETECTION_LAN: "from SIGKILL of a node until all others hold it dead, profile lan",
    Work.DETECTION_FAST: "the same, profile fast",
    Work.FIRST_TASK: "from the wish for a token to the first result from the node that joined with it",
    Work.WRITES: "replicated writes from concurrent clients",
    Work.READS: "linearizable reads from concurrent clients",
    Work.MEMORY: "PSS of a daemon with its fork server, each at rest",
    Work.IDLE_CPU: "processor time of a daemon with its fork server at rest, but for the coordinator's",
    Work.COORDINATOR_CPU: "the same of the coordinator",
    Work.SUSPICIONS: "times that one node suspected another, while all were alive",
    Work.DEATHS: "times that one node held another dead, while all were alive",
    Work.ELECTIONS: "times that another coordinator was elected, while all were alive",
}


class Figure(msgspec.Struct, frozen=True):
    """All measurements of one work, in the order in which they were made."""

    work: Work
    system: str
    median: float
    unit: str
    repeats: list[float]
    setup: str


class Aim(msgspec.Struct, frozen=True):
    """What a figure should reach: its quantile `share` at most `limit`, or at least, when more is better."""

    work: Work
    share: float
    limit: float
    at_least: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """An aim beside what was measured."""

    work: Work
    share: float
    limit: float
    value: float
    reached: bool


class Report(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    figures: list[Figure]
    aims: list[Verdict]
    failures: list[str]
    machine: Mapping[str, str | int | list[float]]
    versions: Mapping[str, str]


AIMS = (
    Aim(Work.FAILOVER, 0.5, 1.0),
    Aim(Work.FAILOVER, 0.99, 2.0),
    Aim(Work.DETECTION_LAN, 0.5, 5.0),
    Aim(Work.DETECTION_LAN, 0.99, 8.0),
    Aim(Work.DETECTION_FAST, 1.0, 2.0),
    Aim(Work.FIRST_TASK, 0.5, 2.0),
    Aim(Work.WRITES, 0.5, 1_000.0, at_least=True),
    Aim(Work.READS, 0.5, 5_000.0, at_least=True),
    Aim(Work.MEMORY, 1.0, 80.0),
    Aim(Work.IDLE_CPU, 1.0, 1.0),
    Aim(Work.COORDINATOR_CPU, 1.0, 8.0),
    Aim(Work.DEATHS, 1.0, 0.0),
    Aim(Work.ELECTIONS, 1.0, 0.0),
)


def figure(work: Work, repeats: Sequence[float], setup: str) -> Figure:
    """The figure of at least one measurement."""
    return Figure(work, SYSTEM, statistics.median(repeats), UNITS[work], list(repeats), setup)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of these values that at least this share of all do not exceed."""
    ascending = sorted(values)
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def verdicts(figures: Sequence[Figure]) -> list[Verdict]:
    """The aims of what was measured."""
    by_work = {each.work: each for each in figures}
    return [_verdict(aim, by_work[aim.work]) for aim in AIMS if aim.work in by_work]


def rendered(report: Report) -> str:
    """The report as text for a terminal."""
    lines: list[str] = []
    for each in report.figures:
        lines += [f"{each.work}: {MEANINGS[each.work]}", f"  {_row(each)}", f"  {each.setup}"]
        lines += [f"  {_told(verdict, each.unit)}" for verdict in report.aims if verdict.work is each.work]
        lines.append("")
    if report.failures:
        lines += ["Trouble:", *(f"  {text}" for text in report.failures)]
    return "\n".join([*lines, *circumstances(report.machine, report.versions)])


def _verdict(aim: Aim, measured: Figure) -> Verdict:
    value = measured.median if aim.share == 0.5 else quantile(measured.repeats, aim.share)
    reached = value >= aim.limit if aim.at_least else value <= aim.limit
    return Verdict(aim.work, aim.share, aim.limit, value, reached)


def _row(each: Figure) -> str:
    values = each.repeats
    if len(values) == 1:
        return f"{_number(each.median)} {each.unit}"
    spread = f"{_number(min(values))} to {_number(max(values))}, {len(values)} measurements"
    tail = f", p99 {_number(quantile(values, 0.99))} {each.unit}" if each.unit == "s" else ""
    return f"median {_number(each.median)} {each.unit}{tail} ({spread})"


def _told(verdict: Verdict, unit: str) -> str:
    name = {0.5: "median", 1.0: "worst"}.get(verdict.share, f"p{verdict.share * 100:.0f}")
    outcome = "reached" if verdict.reached else f"NOT reached: {_number(verdict.value)} {unit}"
    return f"aim for the {name}: {_number(verdict.limit)} {unit}; {outcome}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
