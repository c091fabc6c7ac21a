"""The state as a whole: the same everywhere, at any point of the log, and never a command skipped or applied twice."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated.commands import FORMAT, UnknownEntryError
from kos_cluster.core.replicated.replies import Outcome, Refusal
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.errors import LimitError, StateError, UsageError
from tests.core.replicated.log import START_S, Log, founded, random_command, random_log, random_step_s

ROOT = Path(__file__).parents[3]
randoms = st.randoms(use_true_random=False)


def applied(entries: list[bytes], state: ClusterState | None = None) -> tuple[ClusterState, list[Outcome]]:
    state = state or ClusterState()
    return state, [state.apply(state.applied_index + 1, entry) for entry in entries]


@settings(max_examples=60, deadline=None)
@given(rng=randoms, length=st.integers(1, 60), part=st.floats(0, 1))
def test_going_on_from_a_snapshot_is_going_on(rng: random.Random, length: int, part: float):
    entries = random_log(rng, length)
    cut = int(part * length)
    whole, outcomes = applied(entries)
    first, _ = applied(entries[:cut])
    snapshot = first.snapshot()
    restored = ClusterState.restore(snapshot)
    assert restored.snapshot() == snapshot
    restored, later = applied(entries[cut:], restored)
    assert later == outcomes[cut:]
    assert restored.snapshot() == whole.snapshot()


def test_long_logs_restored_after_every_entry_stay_equal():
    for seed in range(25):
        entries = random_log(random.Random(seed), 150)
        state, other = ClusterState(), ClusterState()
        for index, entry in enumerate(entries, 1):
            outcome = state.apply(index, entry)
            other = ClusterState.restore(other.snapshot())
            assert other.apply(index, entry) == outcome, f"seed {seed}, entry {index}: {c.decode(entry)}"
            assert other.snapshot() == state.snapshot(), f"seed {seed}, entry {index}: {c.decode(entry)}"


def test_random_logs_reach_every_command_both_ways():
    done, refused = set(), set()
    for seed in range(60):
        entries = random_log(random.Random(seed), 150)
        for entry, outcome in zip(entries, applied(entries)[1], strict=True):
            (refused if isinstance(outcome.reply, Refusal) else done).add(type(c.decode(entry).command))
    kinds = set(c.Command.__args__)
    assert done == kinds
    never = {c.Tick, c.OpenSession, c.ReleaseLock, c.DecideTransaction, c.AckTransaction}
    assert refused >= kinds - never - {c.SetSetting, c.BeginTransaction}


def test_every_process_makes_the_same_bytes(tmp_path: Path):
    entries = [entry for seed in range(20) for entry in random_log(random.Random(seed), 100)]
    (tmp_path / "log").write_bytes(msgspec.msgpack.encode(entries))
    program = (
        "import hashlib, sys, msgspec\n"
        "from kos_cluster.core.replicated.state import ClusterState\n"
        "entries = msgspec.msgpack.decode(open(sys.argv[1], 'rb').read(), type=list[bytes])\n"
        "state, digest = ClusterState(), hashlib.sha256()\n"
        "for index, entry in enumerate(entries, 1):\n"
        "    digest.update(msgspec.msgpack.encode(state.apply(index, entry)))\n"
        "digest.update(state.snapshot())\n"
        "print(digest.hexdigest())\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "log")],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "4711")
    }
    digest = hashlib.sha256()
    state, outcomes = applied(entries)
    for outcome in outcomes:
        digest.update(msgspec.msgpack.encode(outcome))
    digest.update(state.snapshot())
    assert told == {digest.hexdigest()}


@settings(max_examples=60, deadline=None)
@given(rng=randoms, length=st.integers(1, 40))
def test_a_command_applied_again_in_its_session_changes_nothing(rng: random.Random, length: int):
    once, twice = ClusterState(), ClusterState()
    opening = c.encode(c.Proposal(1.0, c.OpenSession("me")))
    for state in (once, twice):
        state.apply(1, opening)
    index, serial, now_s, sent = 2, 0, 1.0, []
    for _ in range(length):
        now_s += min(max(random_step_s(rng), 0.0), 40.0)
        serial += 1
        entry = c.encode(c.Proposal(now_s, random_command(rng, once), 1, serial))
        outcome = once.apply(index, entry)
        assert twice.apply(index, entry) == outcome
        index += 1
        sent.append((entry, outcome.reply))
        for entry, reply in rng.sample(sent, min(len(sent), rng.randint(0, 3))):
            # The index moves on where the command is applied again only; so they are compared without it.
            again = twice.apply(index, entry)
            assert again.repeated and again.reply == reply and again.changes == ()
            index += 1
    last = c.encode(c.Proposal(now_s, c.Tick(), 1, serial + 1))
    for state in (once, twice):
        state.apply(index, last)
    assert once.snapshot() == twice.snapshot()


# ---- entries


def test_an_entry_reads_as_it_was_written():
    for seed in range(20):
        for entry in random_log(random.Random(seed), 30):
            assert c.encode(c.decode(entry)) == entry


def unknown_kind() -> bytes:
    return bytes((FORMAT,)) + msgspec.msgpack.encode({"now_s": 1.0, "command": {"type": "GrantWish"}})


def unknown_field() -> bytes:
    return bytes((FORMAT,)) + msgspec.msgpack.encode({"now_s": 1.0, "command": {"type": "Tick", "often": True}})


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        bytes((FORMAT + 1,)) + c.encode(c.Proposal(1.0, c.Tick()))[1:],
        unknown_kind(),
        unknown_field(),
        c.encode(c.Proposal(1.0, c.Tick()))[:-1],
        bytes((FORMAT,)) + msgspec.msgpack.encode({"now_s": 1.0, "command": {"type": "Tick"}, "later": 1}),
    ],
    ids=["empty", "another format", "unknown kind", "unknown field", "cut off", "unknown stamp"],
)
def test_what_cannot_be_understood_halts_and_changes_nothing(entry: bytes):
    log = founded()
    before = log.state.snapshot()
    with pytest.raises(UnknownEntryError, match="cannot be applied") as caught:
        log.state.apply(log.state.applied_index + 1, entry)
    assert "Install" in caught.value.hint
    assert log.state.snapshot() == before


def test_an_entry_is_not_applied_twice_by_index():
    log = founded()
    with pytest.raises(ValueError, match="applied already"):
        log.state.apply(log.state.applied_index, c.encode(c.Proposal(1.0, c.Tick())))


def test_a_time_that_is_none_is_not_proposed_and_moves_no_clock():
    for now_s in (math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError, match="Set this machine's clock"):
            c.encode(c.Proposal(now_s, c.Tick()))
    log = founded()
    clock_s = log.state.clock_s
    entry = bytes((FORMAT,)) + msgspec.msgpack.encode(c.Proposal(math.inf, c.Tick()))
    log.state.apply(log.state.applied_index + 1, entry)
    assert log.state.clock_s == clock_s


@pytest.mark.parametrize("command", [c.SetSetting("x", "\ud800"), c.DecideTransaction(2**64, True)])
def test_what_cannot_be_written_is_not_proposed(command: c.Command):
    with pytest.raises(UsageError, match="cannot be written"):
        c.encode(c.Proposal(1.0, command))


def test_too_large_a_command_is_not_proposed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(c, "ENTRY_LIMIT_BYTES", 100)
    with pytest.raises(LimitError, match="SetSetting command takes"):
        c.encode(c.Proposal(1.0, c.SetSetting("x", "y" * 100)))


def test_the_clock_never_goes_back():
    log = Log()
    for now_s, clock_s in ((10.0, 10.0), (5.0, 10.0), (11.0, 11.0)):
        log.reply(c.Tick(), now_s)
        assert log.state.clock_s == clock_s


def test_the_state_says_when_its_clock_must_move():
    log = founded()
    assert log.state.due_s == math.inf
    log.reply(c.AcquireLock("x", "a", "ann", 10.0))
    assert log.state.due_s == START_S + 10
    log.reply(c.BeginTransaction({"n1": b""}, 5.0))
    assert ClusterState.restore(log.state.snapshot()).due_s == log.state.due_s == START_S + 5
    log.reply(c.Tick(), START_S + 10)
    assert log.state.due_s == math.inf


# ---- snapshots


def test_a_damaged_or_foreign_snapshot_is_refused():
    snapshot = founded().state.snapshot()
    with pytest.raises(UnknownEntryError, match="format"):
        ClusterState.restore(b"\x63" + snapshot[1:])
    with pytest.raises(UnknownEntryError):
        ClusterState.restore(b"")
    for damaged in (snapshot[:-1], snapshot[:1], snapshot + b"x"):
        with pytest.raises(StateError, match="damaged"):
            ClusterState.restore(damaged)


def test_a_snapshot_is_not_tied_to_the_state_it_was_made_of():
    log = founded()
    log.reply(c.AcquireLock("x", "a", "ann", 10.0))
    restored = ClusterState.restore(log.state.snapshot())
    log.reply(c.ReleaseLock("x", "a"))
    lock = restored.locks.get("x")
    assert lock is not None and lock.owner == "a"


# ---- founding


def test_a_cluster_is_founded_once():
    log = founded()
    assert (log.state.cluster, log.state.ca_pem) == ("lab", b"ca")
    refusal = log.refused(c.FoundCluster("other", b"ca", ()))
    assert "is the cluster 'lab' already" in refusal.message


def test_a_refusal_names_its_class_sentence_and_hint():
    refusal = founded().refused(c.DropJob("nope"))
    assert (refusal.error, refusal.hint) == ("NoSuchTaskError", "See 'kos ps'.")
    assert "no detached job nope" in refusal.message
