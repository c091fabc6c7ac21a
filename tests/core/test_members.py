"""The registry of members: heartbeats keep a member alive, silence turns it suspect, then dead."""

from __future__ import annotations

import msgspec
import pytest

from kos_cluster.core import members
from kos_cluster.core.members import Departed, Heard, MemberRefused, Registry, ViewChanged
from kos_cluster.core.records import Load, Member, MemberState, Versions

VERSIONS = Versions("0", 1, "3.11.0", "", "3")


def node(number: int, incarnation: int = 1, **more: object) -> Member:
    member = Member(f"id{number}", f"node{number}", "h", 7567, 2, VERSIONS, incarnation)
    return msgspec.structs.replace(member, **more)


def state(registry: Registry, number: int) -> MemberState:
    return next(m.state for m in registry.members() if m.id == f"id{number}")


def test_silence_turns_suspect_then_dead_and_a_heartbeat_revives():
    registry = Registry([], 0.0)
    registry.handle(Heard(node(1), Load()), 0.0)
    seen = []
    for now in (members.SUSPECT_AFTER_S - 0.1, members.SUSPECT_AFTER_S, members.DEAD_AFTER_S):
        registry.tick(now)
        seen.append(state(registry, 1))
    assert seen == [MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD]
    registry.handle(Heard(node(1), Load()), 9.0)
    assert state(registry, 1) is MemberState.ALIVE


def test_each_change_makes_a_new_view_and_nothing_else_does():
    registry = Registry([], 0.0, first_view=10)
    (change,) = registry.handle(Heard(node(1), Load()), 0.0)
    assert isinstance(change, ViewChanged) and change.was is None and registry.view == 11
    assert registry.handle(Heard(node(1), Load(running=1)), 0.5) == []
    assert registry.view == 11
    assert registry.loads(1.5)["id1"] == (Load(running=1), 1.0)


def test_who_left_stays_away_until_it_starts_anew():
    registry = Registry([], 0.0)
    registry.handle(Heard(node(1), Load()), 0.0)
    registry.handle(Departed("id1", left=True), 1.0)
    assert state(registry, 1) is MemberState.LEFT
    (refusal,) = registry.handle(Heard(node(1), Load()), 1.1)
    assert isinstance(refusal, MemberRefused) and "left" in refusal.reason
    registry.handle(Heard(node(1, incarnation=2), Load()), 2.0)
    assert state(registry, 1) is MemberState.ALIVE


def test_an_older_incarnation_is_refused():
    registry = Registry([], 0.0)
    registry.handle(Heard(node(1, incarnation=5), Load()), 0.0)
    (refusal,) = registry.handle(Heard(node(1, incarnation=4), Load()), 0.1)
    assert isinstance(refusal, MemberRefused)


def test_two_nodes_cannot_have_one_name_unless_the_first_left():
    registry = Registry([], 0.0)
    registry.handle(Heard(node(1), Load()), 0.0)
    twin = node(2, name="node1")
    (refusal,) = registry.handle(Heard(twin, Load()), 0.1)
    assert isinstance(refusal, MemberRefused) and "named node1" in refusal.reason
    assert registry.name_taken("node1")
    registry.handle(Departed("id1", left=True), 0.2)
    assert not registry.name_taken("node1")
    assert isinstance(registry.handle(Heard(twin, Load()), 0.3)[0], ViewChanged)


def test_a_stopped_node_is_dead_at_once():
    registry = Registry([], 0.0)
    registry.handle(Heard(node(1), Load()), 0.0)
    registry.handle(Departed("id1", left=False), 0.1)
    assert state(registry, 1) is MemberState.DEAD
    assert registry.handle(Departed("id1", left=False), 0.2) == []


def test_restored_members_get_time_to_be_heard():
    registry = Registry([node(1)], 100.0)
    registry.tick(100.0 + members.SUSPECT_AFTER_S - 0.1)
    assert state(registry, 1) is MemberState.ALIVE


def test_the_number_of_members_is_bounded_and_the_dead_make_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(members, "MEMBERS_LIMIT", 2)
    registry = Registry([], 0.0)
    registry.handle(Heard(node(1), Load()), 0.0)
    registry.handle(Heard(node(2), Load()), 0.0)
    (refusal,) = registry.handle(Heard(node(3), Load()), 0.1)
    assert isinstance(refusal, MemberRefused) and "limit" in refusal.reason
    registry.handle(Departed("id1", left=True), 0.2)
    registry.handle(Heard(node(3), Load()), 0.3)
    assert sorted(m.id for m in registry.members()) == ["id2", "id3"]
