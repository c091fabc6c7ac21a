"""The cluster's nodes as rows for people and programs, and what can be said of the cluster from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kos_cluster.core.records import Load, MemberState
from kos_cluster.net.identity import Peer
from kos_cluster.net.wire import SyncData
from kos_cluster.node import machine


def newest(told: Iterable[SyncData]) -> SyncData:
    """What several nodes tell, as one: the newest view, and of each node the load that is youngest."""
    views = sorted(told, key=lambda data: data.view)
    loads: dict[str, tuple[Load, float]] = {}
    for data in views:
        for id_, (load, age_s) in data.loads.items():
            if id_ not in loads or age_s < loads[id_][1]:
                loads[id_] = (load, age_s)
    last = views[-1]
    return SyncData(last.view, last.members, loads)


def node_rows(data: SyncData) -> list[dict[str, Any]]:
    """One dict a node; the keys are those of `kos cluster nodes --json`. `pid` only for nodes on this machine."""
    rows = []
    for member in sorted(data.members or [], key=lambda m: m.name):
        load, age_s = data.loads.get(member.id, (Load(), 0.0))
        alive = member.state in (MemberState.ALIVE, MemberState.SUSPECT)
        row: dict[str, Any] = {
            "name": member.name,
            "id": member.id,
            "address": member.address,
            "state": member.state.value,
            "role": "node",
            "coordinator": member.founder and member.state is MemberState.ALIVE,
            "slots": member.slots,
            "running": load.running if alive else 0,
            "queued": load.queued if alive else 0,
            "cpu_percent": load.cpu_percent,
            "memory_percent": load.memory_percent,
            "version": member.versions.kos,
            "python": member.versions.python,
            "dropped_frames": load.dropped_frames,
            "load_age_s": round(age_s, 2),
        }
        if member.boot_id == machine.boot_id() and alive:
            row["pid"] = member.pid
        rows.append(row)
    return rows


def status_of(name: str, peer: Peer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The cluster at a glance."""
    alive = [row for row in rows if row["state"] == "alive"]
    known = [row for row in rows if row["state"] != "left"]
    return {
        "cluster": name,
        "nodes": len(known),
        "alive": len(alive),
        "coordinator": next((row["name"] for row in alive if row["coordinator"]), None),
        "slots": sum(row["slots"] for row in alive),
        "running": sum(row["running"] for row in alive),
        "identity": peer.name,
        "role": peer.role.value,
        "loss": _what_a_loss_means(alive),
    }


def _what_a_loss_means(alive: list[dict[str, Any]]) -> str:
    """The founding node keeps the registry for now, so its loss is told apart."""
    founder = next((row["name"] for row in alive if row["coordinator"]), None)
    if founder is None:
        return "The founding node is not alive: running work goes on, but no machine can join until it is back."
    if len(alive) == 1:
        return f"{founder} is the only node: if it is lost, all work is."
    return (
        f"If {founder}, which founded the cluster, is lost, running work goes on elsewhere, but no machine can join "
        "until it is back. If another node is lost, its tasks run again elsewhere."
    )
