"""The cluster's nodes as rows for people and programs, and what can be said of the cluster from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kos_cluster.core.records import Load, Member, MemberState
from kos_cluster.core.swim.messages import precedence
from kos_cluster.core.voters import loss_sentence
from kos_cluster.net.identity import Peer
from kos_cluster.net.wire import SyncData
from kos_cluster.node import machine


def newest(told: Iterable[SyncData]) -> SyncData:
    """What several nodes tell, as one: of each member the newest record, of each node the youngest load, and the
    coordinator of the latest term."""
    views = sorted(told, key=lambda data: data.term)
    members: dict[str, Member] = {}
    loads: dict[str, tuple[Load, float]] = {}
    for data in views:
        merge(members, data.members or ())
        for id_, (load, age_s) in data.loads.items():
            if id_ not in loads or age_s < loads[id_][1]:
                loads[id_] = (load, age_s)
    last = next((data for data in reversed(views) if data.coordinator), views[-1])
    return msgspec.structs.replace(last, members=list(members.values()), loads=loads)


def merge(known: dict[str, Member], told: Iterable[Member]) -> None:
    """Take members in that are newer than what is known of them (id -> member). One that has left stays so.

    Who was removed may have told something newer of itself before it heard of that, and is still listened to there.
    """
    for member in told:
        before = known.get(member.id)
        if before is None or _precedence(member) > _precedence(before):
            known[member.id] = member


def _precedence(member: Member) -> tuple[bool, int]:
    return member.state is MemberState.LEFT, precedence(member.incarnation, member.state)


def takes_part(row: Mapping[str, Any]) -> bool:
    """Whether a voter can decide, as far as is seen from here: it answers, and has not stopped."""
    return bool(row["answers"]) and not row["trouble"]


def to_ask(rows: Iterable[Mapping[str, Any]], removed: str) -> str:
    """The id of the node to ask to have that one removed, or that client: the coordinator, or another that votes.

    The node itself, which cannot tell how its own removal went, only when no other is alive; empty: any.
    """
    alive = [row for row in rows if row["state"] == MemberState.ALIVE]
    best = min(alive, key=lambda row: (_is(row, removed), not row["coordinator"], not row["voter"]), default=None)
    return best["id"] if best is not None else ""


def _is(row: Mapping[str, Any], name: str) -> bool:
    return name in (row["name"], row["id"])


def node_rows(data: SyncData, troubles: Mapping[str, str]) -> list[dict[str, Any]]:
    """One dict a node; the keys are those of `kos cluster nodes --json`. `pid` only for nodes on this machine.

    `troubles`: why nodes, by their names, take no part in the decisions (empty: they do); of those that answered.
    """
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
            "coordinator": member.id == data.coordinator,
            "voter": member.id in data.voters,
            "drained": member.drained,
            "answers": alive and member.name in troubles,
            "trouble": troubles.get(member.name, "") if alive else "",
            "slots": member.slots,
            "running": load.running if alive else 0,
            "queued": load.queued if alive else 0,
            "cpu_percent": load.cpu_percent,
            "memory_percent": load.memory_percent,
            "received_bytes_s": load.received_bytes_s,
            "sent_bytes_s": load.sent_bytes_s,
            "labels": member.labels,
            "resources": resources_told(member, load),
            "gpus": member.gpus,
            "gpus_in_use": load.gpus_in_use,
            "memory_declared_bytes": load.memory_declared_bytes,
            "over_memory": load.over_memory,
            "version": member.versions.kos,
            "wire": member.versions.wire,
            "python": member.versions.python,
            "numpy": member.versions.numpy,
            "cloudpickle": member.versions.cloudpickle,
            "dropped_frames": load.dropped_frames,
            "load_age_s": round(age_s, 2),
        }
        if member.boot_id == machine.boot_id() and alive:
            row["pid"] = member.pid
        rows.append(row)
    return rows


def resources_told(member: Member, load: Load) -> dict[str, dict[str, int]]:
    """Each named resource of a node: how many there are, and how many are in use."""
    in_use = dict(zip(sorted(member.resources), load.resources_in_use, strict=False))
    return {name: {"total": total, "in_use": in_use.get(name, 0)} for name, total in member.resources.items()}


def status_of(name: str, peer: Peer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The cluster at a glance."""
    alive = [row for row in rows if row["state"] == "alive"]
    known = [row for row in rows if row["state"] != "left"]
    voters = [row for row in known if row["voter"]]
    return {
        "cluster": name,
        "nodes": len(known),
        "alive": len(alive),
        "coordinator": next((row["name"] for row in alive if row["coordinator"]), None),
        "slots": sum(row["slots"] for row in alive),
        "running": sum(row["running"] for row in alive),
        "identity": peer.name,
        "role": peer.role.value,
        "voters": [row["name"] for row in voters],
        "drained": [row["name"] for row in known if row["drained"]],
        "silent": [row["name"] for row in alive if not row["answers"]],
        "trouble": {row["name"]: row["trouble"] for row in known if row["trouble"]},
        "loss": loss_sentence(len(voters), sum(takes_part(row) for row in voters), len(known)),
    }
