"""Monitors in a real browser, of a cluster that is only imagined (100 nodes whose figures move, and jobs), and of the
real one as another user sees it."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

from kos_cluster.core.records import Load, MemberState
from kos_cluster.services.monitor.sampler import Sampler
from kos_cluster.services.monitor.snapshot import DONE, RUNNING, JobSight, Missed, NodeSight, Snapshot
from kos_cluster.tasks.cluster import Cluster, connect
from kos_kernel.dashboard import watch as watches
from kos_kernel.dashboard.widget import Monitor

SAMPLED_WITHIN_S = 60.0


class ImaginedSampler(Sampler):
    """Snapshots of `count` nodes and `jobs` jobs, in place of what is heard and asked of the real cluster each time."""

    def __init__(self, count: int, jobs: int = 40) -> None:
        super().__init__()
        self._count = count
        self._jobs = jobs
        self._began_s = time.time()
        self.answers = True

    def sample(self) -> Snapshot | Missed:
        super().sample()
        now = time.time()
        if not self.answers:
            return Missed(now, "No node of cluster 'lab' answers. Type 'kos up'.")
        return snapshot(now, now - self._began_s, self._count, self._jobs)


def snapshot(now: float, passed_s: float, count: int, jobs: int) -> Snapshot:
    nodes = tuple(_node(number, passed_s) for number in range(1, count + 1))
    return Snapshot(
        now, "lab", "ada@desk", "admin", nodes, tuple(_job(number, now, passed_s) for number in range(jobs))
    )


def _node(number: int, passed_s: float) -> NodeSight:
    wave = (1 + math.sin(passed_s / 7 + number)) / 2
    load = Load(
        running=round(8 * wave),
        queued=number % 3,
        cpu_percent=100 * wave,
        memory_percent=30 + number % 50,
        received_bytes_s=round(wave * 9e7),
        sent_bytes_s=10**6 * number,
    )
    state = MemberState.DEAD if number == 7 else MemberState.SUSPECT if number == 9 else MemberState.ALIVE
    return NodeSight(
        id=f"{number:032x}",
        name=f"node{number}",
        address=f"10.0.0.{number}:7567",
        state=state,
        coordinator=number == 2,
        voter=number < 4,
        drained=number == 5,
        slots=8,
        memory_bytes=64 << 30,
        started_ns=1,
        load=load,
        load_age_s=0.2,
    )


def _job(number: int, now: float, passed_s: float) -> JobSight:
    total = 1000 * (number + 1)
    done = min(total, round(passed_s * 40 * (number % 5 + 1)))
    return JobSight(
        id=f"job{number:05}",
        name=("train", "sweep", "index", "render")[number % 4],
        user="ada@desk",
        state=DONE if done == total else RUNNING,
        total=total,
        done=done,
        failed=0,
        running=min(24, total - done),
        since_s=now - passed_s - number,
        nodes=tuple(f"node{n}" for n in range(1, 2 + number % 6)),
        reruns=number % 3,
    )


def show(count: int = 100, jobs: int = 40) -> Any:
    """A monitor of it."""
    watch = watches.Watch(ImaginedSampler(count, jobs))
    for second in range(90, 0, -1):  # a past
        watch.model.handle(snapshot(time.time() - second, 90.0 - second, count, jobs))
    return _monitor(watch)


def cost_s(monitor: Monitor, samples: int = 20) -> float:
    """Processor time of this process for each sample of a monitor that is looked at: taken ten times as often."""
    left = threading.Semaphore(0)
    monitor._pacing._interval_s /= 10
    monitor._watch.listeners.append(left.release)
    assert left.acquire(timeout=SAMPLED_WITHIN_S)
    began_s = time.process_time()
    for _ in range(samples):
        assert left.acquire(timeout=SAMPLED_WITHIN_S)
    used_s = time.process_time() - began_s
    monitor._pacing._interval_s *= 10
    return used_s / samples


def note_samples(file: str) -> None:
    """Each sample of a cluster that this process takes from now on leaves a byte in this file."""

    def note() -> None:
        with open(file, "ab") as noted:
            noted.write(b".")

    for watch in watches._watches.values():
        watch.listeners.append(note)


class OthersSampler(Sampler):
    """Snapshots as another user of the cluster has them, whose KOS_HOME this is."""

    def __init__(self, home: str) -> None:
        super().__init__()
        self._others = Path(home)

    def cluster(self) -> Cluster:
        return connect(home=self._others)


def show_to(home: str) -> Any:
    """A monitor of the real cluster, as another user sees it."""
    return _monitor(watches.Watch(OthersSampler(home)))


def _monitor(watch: watches.Watch) -> Any:
    """A monitor by this watch, in place of the one that this process has of the cluster."""
    before = dict(watches._watches)
    watches._watches[watch.sampler.cluster().name] = watch
    try:
        return Monitor()
    finally:
        watches._watches.clear()
        watches._watches.update(before)
