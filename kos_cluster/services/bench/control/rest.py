"""Many daemons that do nothing: what memory and processor time they take, and whether they leave each other in peace.

Theory of operation. What happens is read from the daemons' own logs, and what they take from /proc: a client that
watched them would be work. The count begins when all are up and `CALM_S` have passed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from kos_cluster.services.bench.control.figures import Figure, Work, figure
from kos_cluster.services.bench.control.observer import observing
from kos_cluster.services.bench.fleet import Fleet, elections, fleet

NODES = 50
REST_S = 600.0
CALM_S = 30.0  # after the start, in which links are made and packages listed
MEGABYTE = 1e6
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Look(msgspec.Struct, frozen=True):
    """Processor seconds that a daemon and its children have had, and how long its log was, at a time."""

    at_s: float
    cpu_s: float
    log_chars: int


class Events(msgspec.Struct, frozen=True):
    """How often a log tells of these."""

    suspicions: int
    deaths: int
    elections: int


async def measure(nodes: int = NODES, rest_s: float = REST_S, calm_s: float = CALM_S) -> list[Figure]:
    """Start so many nodes and let them rest."""
    with fleet(nodes) as cluster:
        async with observing(cluster.cluster) as observer:
            await observer.settled(nodes)
        await asyncio.sleep(calm_s)
        before = {node: _look(cluster, node) for node in cluster.nodes}
        await asyncio.sleep(rest_s)
        after = {node: _look(cluster, node) for node in cluster.nodes}
        memory = [sum(map(pss_bytes, _family(cluster.pid(node)))) / MEGABYTE for node in cluster.nodes]
        events = [events_of(cluster.log(node)[before[node].log_chars :]) for node in cluster.nodes]
        coordinator = cluster.coordinator()
    setup = f"{nodes} nodes for {rest_s / 60:g} minutes"
    cpu = {node: _percent(before[node], after[node]) for node in cluster.nodes}
    others = [percent for node, percent in cpu.items() if node != coordinator]
    return [
        figure(Work.MEMORY, memory, setup),
        figure(Work.IDLE_CPU, others, setup),
        figure(Work.COORDINATOR_CPU, [cpu[coordinator]], setup),
        *_counts(events, setup),
    ]


def _counts(events: Sequence[Events], setup: str) -> list[Figure]:
    return [
        figure(Work.SUSPICIONS, [sum(each.suspicions for each in events)], setup),
        figure(Work.DEATHS, [sum(each.deaths for each in events)], setup),
        figure(Work.ELECTIONS, [sum(each.elections for each in events)], setup),
    ]


def events_of(log: str) -> Events:
    """What a part of a daemon's log tells."""
    return Events(log.count(" is suspect (was "), log.count(" is dead (was "), len(elections(log)))


def pss_bytes(pid: int) -> int:
    """The memory of a process, what it shares counted in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")


def cpu_s(pid: int) -> float:
    """The processor time that a process has had, its threads that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _family(pid: int) -> list[int]:
    """A daemon, its fork server, and its workers, if it has any."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _look(cluster: Fleet, node: str) -> Look:
    pids = _family(cluster.pid(node))
    return Look(time.monotonic(), sum(map(cpu_s, pids)), len(cluster.log(node)))


def _percent(before: Look, after: Look) -> float:
    return 100 * (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)
