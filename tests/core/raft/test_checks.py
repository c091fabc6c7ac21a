"""What cannot be is dropped and told, whoever sends it; what is not understood is never passed over."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core.raft import (
    Apply,
    Entry,
    Halt,
    HardState,
    Ignored,
    Kind,
    Membership,
    Raft,
    Received,
    Restored,
    Role,
    Snapshot,
    founding,
)
from kos_cluster.core.raft import config as rules
from kos_cluster.core.raft.checks import NUMBER_LIMIT
from kos_cluster.core.raft.log import SNAPSHOT_LIMIT_BYTES
from kos_cluster.core.raft.messages import (
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    SnapshotChunk,
    SnapshotResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from kos_cluster.core.raft.progress import SNAPSHOT_CHUNK_BYTES
from kos_cluster.core.raft.values import ENTRY_VERSION
from kos_cluster.errors import StateError
from tests.core.raft.network import GROUP, Network

ABC = Membership(("a", "b", "c"))


def entry(index: int, term: int, kind: str = Kind.COMMAND, data: bytes = b"cmd", version: int = ENTRY_VERSION) -> Entry:
    return Entry(index, term, kind, data, version)


def append(*entries: Entry, prev_index: int = 1, prev_term: int = 1, term: int = 2, commit: int = 0) -> Append:
    return Append(group=GROUP, term=term, prev_index=prev_index, prev_term=prev_term, commit=commit, entries=entries)


def chunk(**changes: object) -> SnapshotChunk:
    whole = SnapshotChunk(
        group=GROUP, term=2, index=5, index_term=2, membership=ABC, offset=0, total_bytes=10, data=b"x"
    )
    return msgspec.structs.replace(whole, **changes)


TO_A_FOLLOWER: dict[str, tuple[str, Message, str]] = {
    "another group": ("b", Heartbeat(group="other", term=2, commit=0), "it is of the group 'other'"),
    "an older wire version": ("b", Heartbeat(group=GROUP, term=2, commit=0, version=0), "it speaks version 0"),
    "itself": ("a", Heartbeat(group=GROUP, term=2, commit=0), "this node sent it"),
    "a term that overflows": ("b", Heartbeat(group=GROUP, term=NUMBER_LIMIT + 1, commit=0), "its term is"),
    "a negative term": ("b", VoteRequest(group=GROUP, term=-1, last_index=1, last_term=1), "its term is -1"),
    "a negative index": ("b", append(prev_index=-1), "its prev_index is -1"),
    "a leader of term 0": ("b", Heartbeat(group=GROUP, term=0, commit=0), "no leader in term 0"),
    "a gap in the entries": ("b", append(entry(3, 2)), "its entry 3 of term 2 follows entry 1 of term 1"),
    "an entry of a later term": ("b", append(entry(2, 3)), "its entry 2 of term 3 follows"),
    "terms that go back": ("b", append(entry(2, 2), entry(3, 1)), "its entry 3 of term 1 follows"),
    "a newer entry": ("b", append(entry(2, 2, version=ENTRY_VERSION + 1)), "its entry 2 is of version"),
    "an unknown kind": ("b", append(entry(2, 2, kind="magic")), "its entry 2 is of no known kind"),
    "a membership of nobody": (
        "b",
        append(entry(2, 2, Kind.CONFIG, rules.encode(Membership()))),
        "its entry 2 is of no known kind, or names no membership",
    ),
    "a commit beyond the log": ("b", Heartbeat(group=GROUP, term=2, commit=9), "the log ends at 1"),
    "a change of what is committed": (
        "b",
        append(entry(1, 2), prev_index=0, prev_term=0),
        "contradicts the one that is committed",
    ),
    "a snapshot too large": ("b", chunk(total_bytes=SNAPSHOT_LIMIT_BYTES + 1), "are allowed"),
    "a part beyond the end": ("b", chunk(offset=10), "does not fit the snapshot"),
    "a part too large": (
        "b",
        chunk(total_bytes=1 << 20, data=bytes(SNAPSHOT_CHUNK_BYTES + 1)),
        "does not fit the snapshot",
    ),
    "a snapshot of nothing": ("b", chunk(index=0), "cannot be"),
    "a snapshot of a later term": ("b", chunk(index_term=3), "cannot be"),
    "a snapshot without voters": ("b", chunk(membership=Membership()), "cannot be"),
    "an answer from a stranger": ("z", HeartbeatResponse(group=GROUP, term=2), "its sender is not a member"),
    "a vote from a stranger": ("z", VoteResponse(group=GROUP, term=9, granted=False), "its sender is not a member"),
    "an order to stand without a vote": ("b", TimeoutNow(group=GROUP, term=2), "a node without a vote"),
}


@pytest.mark.parametrize("case", TO_A_FOLLOWER)
def test_an_impossible_message_is_dropped_and_told(case: str) -> None:
    sender, message, why = TO_A_FOLLOWER[case]
    restored = founding(("b", "c") if "without a vote" in case else ("a", "b", "c"))
    raft = Raft("a", GROUP, restored, Random(1), 0.0)
    raft.start()
    (ignored,) = [e for e in raft.handle(Received(sender, message), 0.0) if isinstance(e, Ignored)]
    assert ignored.sender == sender
    assert why in ignored.why
    assert (raft.last_index, raft.commit, raft.halted) == (1, 1, "")


def test_a_leader_drops_impossible_answers() -> None:
    network = Network("abc")
    leader = network.elect()
    term, other = leader.raft.term, next(node for node in "abc" if node != leader.node)
    for message, why in (
        (AppendResponse(group=GROUP, term=term, index=999), "it answers for entry 999; the log ends at"),
        (HeartbeatResponse(group=GROUP, term=term, round=999), "it answers round 999 of heartbeats"),
        (Heartbeat(group=GROUP, term=term, commit=0), f"it claims to lead in term {term}"),
    ):
        leader.handle(Received(other, message))
        ignored = leader.effects[-1]
        assert isinstance(ignored, Ignored)
        assert why in ignored.why
    for late in (
        SnapshotResponse(group=GROUP, term=term, index=3, offset=7),
        AppendResponse(group=GROUP, term=term, index=1, rejected=True),
        AppendResponse(group=GROUP, term=term - 1, index=999),
    ):
        before = len(leader.effects)
        leader.handle(Received(other, late))
        assert len(leader.effects) == before
    assert leader.raft.role is Role.LEADER
    network.propose(leader, b"1")
    assert leader.commands == [b"cmd1"]


numbers = st.integers(-2, 6) | st.sampled_from([NUMBER_LIMIT, NUMBER_LIMIT + 1, -(1 << 63), (1 << 64) - 1])
common = {"group": st.just(GROUP), "term": numbers, "version": st.integers(0, 3)}
entries = st.builds(
    Entry, numbers, numbers, st.sampled_from([*Kind, "magic"]), st.sampled_from([b"", b"x", rules.encode(ABC)]), numbers
)
memberships = st.builds(
    Membership, st.sampled_from([(), ("a",), ("a", "b", "c")]), st.sampled_from([(), ("a",), ("x",)])
)
messages = st.one_of(
    *(
        st.builds(
            kind,
            **common,
            **{
                field.name: {
                    "membership": memberships,
                    "entries": st.lists(entries, max_size=3).map(tuple),
                    "data": st.binary(max_size=4),
                    "refused": st.just("no"),
                }.get(field.name, st.booleans() if field.type is bool else numbers)
                for field in msgspec.structs.fields(kind)
                if field.name not in common
            },
        )
        for kind in Message.__args__  # type: ignore[attr-defined]
    )
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 99), received=st.lists(st.tuples(st.sampled_from("abcxz"), messages), max_size=12))
def test_no_message_makes_a_machine_fail(seed: int, received: list[tuple[str, Message]]) -> None:
    """Whatever its members send, true or not; a lie may mislead it, and must not break it."""
    raft = Raft("a", GROUP, founding(("a", "b", "c")), Random(seed), 0.0)
    raft.start()
    now = 0.0
    for sender, message in received:
        term = raft.term
        raft.handle(Received(sender, message), now)
        assert raft.term >= term
        assert raft.applied <= raft.commit <= raft.last_index
        now += 0.4
        raft.tick(now)


# ---- what is on the disk


def test_an_entry_of_a_newer_version_stops_the_machine_and_is_not_passed_over() -> None:
    strange = entry(3, 1, version=ENTRY_VERSION + 1)
    log = (*founding(("a",)).entries, entry(2, 1), strange, entry(4, 1))
    for commit in (4, 2):
        raft = Raft("a", GROUP, Restored(HardState(1, None, commit), None, log), Random(1), 0.0)
        effects = raft.start()
        applied = [e.index for apply in effects if isinstance(apply, Apply) for e in apply.entries]
        assert applied == [1, 2]
        (halt,) = [effect for effect in effects if isinstance(effect, Halt)]
        assert "Entry 3 of the log is of version 2 (command)" in halt.reason
        assert "Upgrade KOS" in halt.reason
        assert raft.tick(1e9) == []


IMPOSSIBLE = {
    "a gap": Restored(HardState(1), None, (entry(1, 1), entry(3, 1))),
    "no beginning": Restored(HardState(1), None, (entry(2, 1),)),
    "a commit beyond the end": Restored(HardState(1, None, 5), None, (entry(1, 1),)),
    "a hole after the snapshot": Restored(HardState(1), Snapshot(3, 1, ABC, b""), (entry(5, 1),)),
    "a log that ends before the snapshot": Restored(HardState(1), Snapshot(3, 1, ABC, b""), (entry(1, 1), entry(2, 1))),
    "a snapshot of another log": Restored(HardState(2), Snapshot(2, 2, ABC, b""), (entry(1, 1), entry(2, 1))),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_disk_that_cannot_be_is_refused(case: str) -> None:
    with pytest.raises(StateError, match="join again"):
        Raft("a", GROUP, IMPOSSIBLE[case], Random(1), 0.0)
