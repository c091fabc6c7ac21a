"""Snapshots of imagined clusters, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

from kos_cluster.core.records import Load, MemberState
from kos_cluster.services.monitor.snapshot import RUNNING, JobSight, NodeSight, Snapshot


def node(number: int, **changes: Any) -> NodeSight:
    known: dict[str, Any] = {
        "id": f"id{number}",
        "name": f"node{number}",
        "address": f"10.0.0.{number}:7567",
        "state": MemberState.ALIVE,
        "coordinator": number == 1,
        "voter": number <= 3,
        "drained": False,
        "slots": 4,
        "memory_bytes": 1 << 34,
        "started_ns": 1,
        "load": Load(running=1, queued=2, cpu_percent=50.0, memory_percent=25.0, memory_available_bytes=1 << 33),
        "load_age_s": 0.1,
    }
    return NodeSight(**{**known, **changes})


def job(id_: str = "j1", **changes: Any) -> JobSight:
    known: dict[str, Any] = {
        "id": id_,
        "name": "train",
        "user": "ada",
        "state": RUNNING,
        "total": 10,
        "done": 0,
        "failed": 0,
        "running": 2,
        "since_s": 1.0,
    }
    return JobSight(**{**known, **changes})


def snapshot(at_s: float, nodes: Any = (), jobs: Any = ()) -> Snapshot:
    return Snapshot(at_s, "lab", "ada@desk", "admin", tuple(nodes), tuple(jobs))
