"""The registry at its keeper and at a follower: durable before it is told, names unique, silence seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kos_cluster.core.records import Load, Member, MemberState
from kos_cluster.errors import UsageError
from kos_cluster.net import wire
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.node import machine, registry
from kos_cluster.node.registry import Follower, Keeper
from kos_cluster.node.store import Store

CA = "a" * 64


def member(name: str, **changes: object) -> Member:
    plain = Member(f"{name}-id", name, "127.0.0.1", 7567, 1, machine.versions(), 1)
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state.sqlite")
    yield store
    store.close()


def test_members_are_on_the_disk_before_they_are_told(store: Store) -> None:
    saved: list[bytes | None] = []
    keeper = Keeper(store, CA, lambda: saved.append(store.get("members")))
    keeper.heard(member("ada"), Load())
    keeper.heard(member("ada"), Load(running=1))  # load alone is no news of the members
    assert [msgspec.msgpack.decode(s or b"", type=list[Member]) for s in saved] == [[member("ada")]]
    again = Keeper(store, CA, lambda: None)
    assert again.members() == [member("ada")]


def test_the_view_is_sent_only_to_who_has_an_older_one(store: Store) -> None:
    keeper = Keeper(store, CA, lambda: None)
    keeper.heard(member("ada"), Load(running=3))
    assert keeper.sync_data(-1).members == [member("ada")]
    assert keeper.sync_data(keeper.view).members is None
    assert keeper.sync_data(keeper.view).loads["ada-id"][0].running == 3


def test_a_name_is_given_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(store, CA, lambda: None)
    keeper.heard(member("ada"), Load())
    assert keeper.free_name("grace") == "grace"
    names = [keeper.free_name(wanted) for wanted in ("grace", "ada", "", "")]
    assert len({*names, "grace", "ada"}) == 6
    monkeypatch.setattr(registry, "NAME_PROMISE_S", -1.0)
    keeper.free_name("hopper")
    assert keeper.free_name("hopper") == "hopper"  # the promise has run out


def test_a_name_comes_free_when_its_holder_leaves_for_good(store: Store) -> None:
    keeper = Keeper(store, CA, lambda: None)
    keeper.heard(member("ada"), Load())
    keeper.departed("ada-id", left=False)
    assert keeper.free_name("ada") != "ada"
    keeper.departed("ada-id", left=True)
    assert keeper.free_name("ada") == "ada"


def test_a_token_is_kept_by_its_hash_over_a_restart(store: Store) -> None:
    text = Keeper(store, CA, lambda: None).mint("client", 60.0)
    token = JoinToken.parse(text)
    assert token.ca_sha256 == CA
    assert token.secret.encode() not in (store.get("tokens") or b"")
    assert len(Keeper(store, CA, lambda: None).tokens.snapshot()) == 1
    with pytest.raises(UsageError, match="no role 'root'"):
        Keeper(store, CA, lambda: None).mint("root", 60.0)


def test_a_follower_takes_a_silent_keeper_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    follower = Follower(lambda: changes.append(1))
    view = [member("ada", founder=True), member("grace")]
    follower.told(wire.SyncData(7, view, {"ada-id": (Load(running=1), 0.5)}))
    follower.told(wire.SyncData(7, None, {}))
    assert (follower.view, follower.members(), changes) == (7, view, [1])
    monkeypatch.setattr(registry, "KEEPER_SILENT_S", 0.0)
    assert [m.state for m in follower.members()] == [MemberState.DEAD, MemberState.ALIVE]
