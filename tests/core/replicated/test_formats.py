"""Nodes of two versions that apply one log: what the newer ones write, the older ones read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec
import pytest

from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import formats
from kos_cluster.core.replicated.replies import Done, Refusal
from kos_cluster.core.replicated.state import ClusterState, _Snapshot
from kos_cluster.errors import IncompatibleError

NEWER = c.FORMAT + 1
NEW_KIND = c.ReleaseLock  # stands for one that came with the newer format


def member(id_: str, log_format: int, state: MemberState = MemberState.ALIVE) -> Member:
    return Member(id_, id_, "h", 1, 1, Versions("1", 2, "3.11", "", "", log_format), 1, state)


@contextlib.contextmanager
def newer() -> Iterator[None]:
    """What is done within is done by a node of the newer version."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(c, "FORMAT", NEWER)
        patched.setitem(c.SINCE, NEW_KIND, NEWER)
        yield


class Pair:
    """A node of each version; the newer one coordinates."""

    def __init__(self) -> None:
        self.old, self.new = ClusterState(), ClusterState()

    def written(self, command: c.Command) -> bytes:
        with newer():
            return c.encode(c.Proposal(1.0, command), self.new.format)

    def apply(self, command: c.Command) -> None:
        """Raises UnknownEntryError when the older one cannot."""
        entry = self.written(command)
        with newer():
            self.new.apply(self.new.applied_index + 1, entry)
        self.old.apply(self.old.applied_index + 1, entry)


def test_the_newest_that_all_read_is_written() -> None:
    members = [member("a", 3), member("b", 2, MemberState.DEAD), member("c", 4), member("gone", 1, MemberState.LEFT)]
    assert formats.readable(("a", "b", "c"), members) == 2, "who is dead may come back"
    assert formats.readable(("a", "c"), members) == 3
    assert formats.readable(("a", "stranger"), members) == c.FIRST_FORMAT
    assert formats.readable((), members) == c.FIRST_FORMAT


def test_while_one_node_is_older_a_newer_coordinator_writes_what_that_one_reads() -> None:
    pair = Pair()
    pair.apply(c.SetSetting("colour", "red"))
    assert pair.old.settings.get("colour") == pair.new.settings.get("colour") == "red"
    with pytest.raises(IncompatibleError, match="cannot be read by all nodes yet") as caught:
        pair.written(NEW_KIND("x", "me"))
    assert "Install the same version of kos-cluster" in caught.value.hint
    with newer():
        snapshot = pair.new.snapshot()
    assert ClusterState.restore(snapshot).settings.get("colour") == "red"


def test_once_a_newer_format_is_agreed_it_is_written_and_an_older_version_stops_at_it() -> None:
    pair = Pair()
    pair.apply(formats.raised(pair.new.settings, NEWER))
    with newer():
        assert pair.new.format == NEWER
    assert pair.written(NEW_KIND("x", "me"))[0] == NEWER
    before = pair.old.snapshot()
    with pytest.raises(
        c.UnknownEntryError, match=f"of format {NEWER}, and this version reads formats up to {c.FORMAT}"
    ):
        pair.apply(NEW_KIND("x", "me"))
    assert pair.old.snapshot() == before
    with newer():
        snapshot = pair.new.snapshot()
    with pytest.raises(c.UnknownEntryError, match="no format that this version reads"):
        ClusterState.restore(snapshot)


def test_the_agreed_format_does_not_go_back() -> None:
    state = ClusterState()
    stale = formats.raised(state.settings, NEWER)
    for format, kind in ((NEWER + 1, Done), (NEWER, Refusal)):
        command = stale if format == NEWER else formats.raised(state.settings, format)
        reply = state.apply(state.applied_index + 1, c.encode(c.Proposal(1.0, command))).reply
        assert isinstance(reply, kind)
    assert formats.agreed(state.settings) == NEWER + 1


@pytest.mark.parametrize("text", ["", "newest", "²", "-1"])
def test_a_setting_that_is_no_format_is_the_first(text: str) -> None:
    state = ClusterState()
    state.settings.set("format", text)
    assert state.format == c.FIRST_FORMAT


def test_what_a_newer_version_keeps_besides_is_not_in_a_snapshot_while_it_is_empty() -> None:
    class Later(_Snapshot, frozen=True, omit_defaults=True):
        wishes: tuple[str, ...] = ()

    for kept, read in ((Later(clock_s=1.0), True), (Later(clock_s=1.0, wishes=("one",)), False)):
        with contextlib.nullcontext() if read else pytest.raises(msgspec.ValidationError):
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=_Snapshot).clock_s == 1.0
