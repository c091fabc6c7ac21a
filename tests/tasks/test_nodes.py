"""What several nodes tell of the members, as one; and whom a client asks."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.core.roles import Role
from kos_cluster.errors import UnreachableError
from kos_cluster.net.administration import RemoveNode
from kos_cluster.net.identity import Peer
from kos_cluster.net.wire import SyncData
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.nodes import newest, node_rows, status_of, to_ask

VERSIONS = Versions("1", 2, "3.11", "", "")
LEFT, DEAD = MemberState.LEFT, MemberState.DEAD


def member(name: str, incarnation: int = 1, state: MemberState = MemberState.ALIVE) -> Member:
    return Member(f"id-{name}", name, "127.0.0.1", 7567, 1, VERSIONS, incarnation, state)


def told(*members: Member, coordinator: str = "", voters: tuple[str, ...] = (), term: int = 1) -> SyncData:
    return SyncData(1, list(members), {}, coordinator, term, list(voters))


def rows(*views: SyncData) -> list[dict[str, Any]]:
    return node_rows(newest(views), {})


def test_of_each_member_the_newest_record_holds() -> None:
    views = told(member("a", 2), member("b", 1, DEAD)), told(member("a", 1, DEAD), member("b", 1))
    for order in (views, views[::-1]):
        assert [(row["name"], row["state"]) for row in rows(*order)] == [("a", "alive"), ("b", "dead")]


def test_one_that_was_removed_is_not_there_whatever_it_says_of_itself_since() -> None:
    """It said that it is drained as it heard that it is to be removed, and the others removed it before they heard."""
    theirs = told(member("a"), member("gone", 1, LEFT))
    its_own = told(replace(member("gone", 2), drained=True), member("a"))
    for order in ((theirs, its_own), (its_own, theirs)):
        assert {row["name"]: row["state"] for row in rows(*order)} == {"a": "alive", "gone": "left"}


def test_the_coordinator_is_asked_to_remove_a_node_and_another_to_remove_that() -> None:
    members = [member(name) for name in ("a", "b", "c", "d")]
    seen = rows(told(*members, coordinator="id-c", voters=("id-b", "id-c", "id-d")))
    for name in ("a", "id-b", "a user"):
        assert to_ask(seen, name) == "id-c"
    for name in ("c", "id-c"):
        assert to_ask(seen, name) == "id-b"


def test_the_last_node_is_asked_itself() -> None:
    seen = rows(told(member("a"), member("b", 1, LEFT), member("c", 1, DEAD), coordinator="id-a", voters=("id-a",)))
    assert to_ask(seen, "a") == "id-a"
    assert to_ask([], "a") == ""


@pytest.mark.parametrize(("troubles", "taking_part"), [({"a": "", "b": ""}, 2), ({"a": "", "b": "full"}, 1)])
def test_only_voters_that_answer_and_can_decide_are_counted(troubles: dict[str, str], taking_part: int) -> None:
    """One that has just died is alive in everybody's view for some seconds, and answers nobody."""
    ids = tuple(f"id-{name}" for name in "abc")
    seen = node_rows(told(*map(member, "abc"), coordinator="id-a", voters=ids), troubles)
    peer = Peer("lab", "u", "ada", Role.ADMIN, 1, b"", 0.0)
    loss = status_of("lab", peer, seen)["loss"]
    assert loss.startswith(f"3 voters, {taking_part} taking part, 2 needed: ")


class Removing:
    """Stands for the mesh: nodes that tell their views, one after the other, and the one of them that can decide."""

    def __init__(self, views: list[SyncData], decides: str) -> None:
        self.asked: list[str] = []
        self._views = views
        self._decides = decides

    def request_all(self, *_: object) -> dict[str, SyncData]:
        return {"whoever": self._views.pop(0) if len(self._views) > 1 else self._views[0]}

    def request(self, question: RemoveNode, kind: type, *, node: str, timeout_s: float) -> list[str]:
        self.asked.append(node)
        if node != self._decides:
            raise UnreachableError("The cluster could not decide.")
        return [question.name]

    def close(self) -> None:
        pass


GONE_TELLS = told(member("a"), member("gone"), coordinator="id-a", voters=("id-a", "id-gone"))
A_TELLS = told(member("a"), member("gone", 1, LEFT), coordinator="id-a", voters=("id-a",))


def test_when_one_that_was_removed_was_the_first_to_answer_another_is_asked() -> None:
    mesh = Removing([GONE_TELLS, A_TELLS], decides="id-a")
    with Cluster(mesh) as cluster:  # type: ignore[arg-type]
        assert cluster.remove("a") == ["a"]
    assert mesh.asked == ["id-gone", "id-a"]


def test_where_nobody_else_can_be_asked_it_is_said_that_nothing_was_decided() -> None:
    mesh = Removing([A_TELLS], decides="nobody")
    with Cluster(mesh) as cluster, pytest.raises(UnreachableError, match="could not decide"):  # type: ignore[arg-type]
        cluster.remove("a")
    assert mesh.asked == ["id-a"]
