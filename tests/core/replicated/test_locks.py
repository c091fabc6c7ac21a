"""Locks: one holder, first come first served, tokens that only grow, and leases that end by the replicated clock."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import locks
from kos_cluster.core.replicated.replies import LeaseEnded, LockGranted, LockPassedOn, LockQueued
from kos_cluster.core.replicated.state import ClusterState
from tests.core.replicated.log import START_S, Log, random_log


def acquire(owner: str, ttl_s: float = 10.0, wait_s: float = 0.0, name: str = "x") -> c.AcquireLock:
    return c.AcquireLock(name, owner, f"ann@{owner}", ttl_s, wait_s)


def test_a_free_lock_is_granted_and_a_taken_one_says_who_has_it_for_how_long():
    log = Log()
    assert log.reply(acquire("a")) == LockGranted("x", 1, START_S + 10)
    refusal = log.refused(acquire("b"), START_S + 4)
    assert refusal.error == "LockHeldError"
    assert refusal.message == "The lock 'x' is taken: ann@a has held it for 4 s, its lease ends in 6 s."
    log.reply(acquire("b", wait_s=5))
    assert ", 1 waiting" in log.refused(acquire("c")).message


def test_asking_again_keeps_the_token_and_renews():
    log = Log()
    log.reply(acquire("a"))
    assert log.reply(acquire("a"), START_S + 8) == LockGranted("x", 1, START_S + 18)
    assert log.reply(c.RenewLock("x", "a", 1), START_S + 16) == LockGranted("x", 1, START_S + 26)


def test_a_lease_that_ended_is_not_renewed_and_its_lock_is_free():
    log = Log()
    log.reply(acquire("a"))
    outcome = log.apply(c.Tick(), START_S + 10)
    assert outcome.changes == (LeaseEnded("x", "a", 1),)
    refusal = log.refused(c.RenewLock("x", "a", 1))
    assert "with token 1 has ended; nobody holds it" in refusal.message
    assert log.reply(acquire("b")).token == 2
    assert "ann@b has held it" in log.refused(c.RenewLock("x", "a", 1)).message
    assert log.refused(c.RenewLock("x", "b", 1)).error == "LockHeldError"


def test_who_waits_gets_it_in_the_order_of_asking_with_a_full_lease():
    log = Log()
    log.reply(acquire("a"))
    assert [log.reply(acquire(owner, 7.0, 100)).place for owner in "bcd"] == [1, 2, 3]
    assert log.reply(acquire("c", 7.0, 100), START_S + 0.5).place == 2  # asking again keeps the place
    lock = log.state.locks.get("x")
    assert lock is not None and [waiter.since_s for waiter in lock.queue] == [START_S] * 3
    outcome = log.apply(c.ReleaseLock("x", "a"), START_S + 1)
    assert outcome.changes == (LockPassedOn("x", "b", 2),)
    assert log.reply(acquire("b", 7.0)).until_s == START_S + 8
    outcome = log.apply(c.Tick(), START_S + 8)  # b died: its lease ends, c is next
    assert outcome.changes == (LeaseEnded("x", "b", 2), LockPassedOn("x", "c", 3))
    log.reply(c.ReleaseLock("x", "c"))
    lock = log.state.locks.get("x")
    assert lock is not None and (lock.owner, lock.token, lock.queue) == ("d", 4, [])


def test_a_waiter_without_patience_left_is_passed_over():
    log = Log()
    log.reply(acquire("a", 100.0))
    log.reply(acquire("b", wait_s=5))
    log.reply(acquire("c", wait_s=50))
    outcome = log.apply(c.Tick(), START_S + 5)
    assert outcome.changes == (LeaseEnded("x", "b", 0),)
    assert log.apply(c.ReleaseLock("x", "a")).changes == (LockPassedOn("x", "c", 2),)


def test_a_waiter_whose_patience_ends_with_the_lease_does_not_get_it():
    log = Log()
    log.reply(acquire("a", 10.0))
    log.reply(acquire("b", wait_s=10))
    log.reply(acquire("c", wait_s=11))
    changes = log.apply(c.Tick(), START_S + 10).changes
    assert changes == (LeaseEnded("x", "b", 0), LeaseEnded("x", "a", 1), LockPassedOn("x", "c", 2))


def test_releasing_leaves_the_queue_too_and_a_second_release_harms_nobody():
    log = Log()
    log.reply(acquire("a"))
    log.reply(acquire("b", wait_s=50))
    log.reply(c.ReleaseLock("x", "b"))
    log.reply(c.ReleaseLock("x", "a"))
    log.reply(c.ReleaseLock("x", "a"))
    assert log.state.locks.get("x") is None
    log.reply(acquire("c"))
    log.reply(c.ReleaseLock("x", "a"))
    assert log.state.locks.get("x") is not None


def test_tokens_grow_over_release_expiry_and_all_locks():
    log = Log()
    tokens = []
    for number in range(20):
        tokens.append(log.reply(acquire(f"o{number}", name=f"lock{number % 3}")).token)
        if number % 2:
            log.reply(c.ReleaseLock(f"lock{number % 3}", f"o{number}"))
        else:
            log.reply(c.Tick(), log.now_s + 20)
    assert tokens == sorted(set(tokens))


def test_in_random_logs_every_new_holder_has_a_larger_token_than_all_before():
    grants = 0
    for seed in range(40):
        state, highest = ClusterState(), 0
        holders: dict[str, tuple[str, int]] = {}
        for index, entry in enumerate(random_log(random.Random(seed), 200), 1):
            outcome = state.apply(index, entry)
            now = {lock.name: (lock.owner, lock.token) for lock in state.locks.snapshot()}
            fresh = [token for name, (_, token) in now.items() if holders.get(name, ("", 0))[1] != token]
            assert all(token > highest for token in fresh), f"seed {seed}, entry {index}"
            for name, holder in now.items():
                was = holders.get(name)
                assert was is None or was[0] == holder[0] or was[1] < holder[1], f"seed {seed}, entry {index}"
            told = {change.token for change in outcome.changes if isinstance(change, LockPassedOn)}
            if isinstance(outcome.reply, LockGranted) and not outcome.repeated:
                told.add(outcome.reply.token)
            assert set(fresh) <= told, f"seed {seed}, entry {index}: nobody was told of {fresh}"
            highest, holders = max([highest, *fresh]), now
            grants += len(fresh)
    assert grants > 200


@pytest.mark.parametrize(
    "command",
    [
        acquire("a", 0.5),
        acquire("a", 25 * 3600.0),
        acquire("a", float("nan")),
        acquire("a", wait_s=-1),
        acquire("a", wait_s=float("inf")),
        acquire("a", name=""),
        acquire("a", name="x" * 257),
        acquire(""),
    ],
)
def test_what_makes_no_sense_is_refused(command: c.AcquireLock):
    if command.owner == "":
        command = c.AcquireLock("x", "", "ann", 10.0)
    assert Log().refused(command).error == "UsageError"


def test_locks_and_queues_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "LOCKS_LIMIT", 1)
    monkeypatch.setattr(locks, "WAITERS_LIMIT", 1)
    log = Log()
    log.reply(acquire("a"))
    assert log.refused(acquire("a", name="y")).error == "LimitError"
    assert isinstance(log.reply(acquire("b", wait_s=5)), LockQueued)
    assert log.refused(acquire("c", wait_s=5)).error == "LimitError"
    assert isinstance(log.reply(acquire("b", wait_s=5)), LockQueued)
