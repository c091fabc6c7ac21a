"""Which node a forwarded port leads to, when this process has only just connected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.roles import Role
from kos_cluster.errors import NoSuchNodeError
from kos_cluster.net.wire import SyncData
from kos_cluster.node import machine
from kos_cluster.tasks.portforwarding import forward


def member(name: str, state: MemberState = MemberState.ALIVE) -> Member:
    return Member(f"id-{name}", name, "127.0.0.1", 7567, 1, machine.versions(), 1, state=state)


def test_a_node_that_this_process_was_not_told_of_yet_is_asked_for():
    told = SyncData(0, [member("node1"), member("node2"), member("old", MemberState.LEFT)], {})
    mesh = SimpleNamespace(
        credentials=SimpleNamespace(peer=SimpleNamespace(role=Role.CLIENT, name="ada")),
        members=[member("node1")],
        request=lambda question, kind: told,
    )
    with forward(mesh, "node2", 80) as forwarded:  # type: ignore[arg-type]
        assert "port 80 of node2" in repr(forwarded)
    for gone in ("attic", "old"):
        with pytest.raises(NoSuchNodeError, match=f"No node is named '{gone}'") as refused:
            forward(mesh, gone, 80)  # type: ignore[arg-type]
        assert refused.value.hint == "The cluster has node1, node2."
