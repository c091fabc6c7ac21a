"""Transactions: the first decision stands, commits are kept until all have acked, aborts are presumed."""

from __future__ import annotations

import pytest

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import transactions
from kos_cluster.core.replicated.replies import Decision, TransactionChanged
from kos_cluster.core.replicated.state import ClusterState
from tests.core.replicated.log import START_S, Log


def begun() -> tuple[Log, int]:
    log = Log()
    return log, log.reply(c.BeginTransaction({"b": b"2", "a": b"1"}, 10.0)).txn


def test_the_number_is_the_index_of_the_beginning():
    log, txn = begun()
    assert txn == log.state.applied_index
    transaction = log.state.transactions.get(txn)
    assert transaction is not None and list(transaction.participants) == ["a", "b"]
    assert log.state.transactions.decision(txn) is Decision.OPEN


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_the_first_decision_stands(first: bool, second: bool):
    log, txn = begun()
    decision = Decision.COMMITTED if first else Decision.ABORTED
    outcome = log.apply(c.DecideTransaction(txn, first))
    assert outcome.reply.decision is decision and outcome.changes == (TransactionChanged(txn, decision),)
    outcome = log.apply(c.DecideTransaction(txn, second))
    assert outcome.reply.decision is decision and outcome.changes == ()


def test_a_commit_is_kept_until_all_have_acked():
    log, txn = begun()
    log.reply(c.AckTransaction(txn, ("a", "b")))  # before the decision it says nothing
    log.reply(c.DecideTransaction(txn, True))
    log.reply(c.AckTransaction(txn, ("a", "stranger")))
    transaction = log.state.transactions.get(txn)
    assert transaction is not None and transaction.unacked == ["b"]
    log.state = ClusterState.restore(log.state.snapshot())
    log.reply(c.Tick(), START_S + 1e6)  # however long it takes
    assert log.state.transactions.get(txn) is not None
    assert log.reply(c.AckTransaction(txn, ("b",))).decision is Decision.COMMITTED
    assert log.state.transactions.get(txn) is None
    assert log.reply(c.DecideTransaction(txn, False)).decision is Decision.COMMITTED


def test_without_a_decision_in_time_it_is_aborted():
    log, txn = begun()
    log.reply(c.Tick(), START_S + 9.9)
    outcome = log.apply(c.DecideTransaction(txn, True), START_S + 10)
    assert outcome.reply.decision is Decision.ABORTED
    assert outcome.changes == (TransactionChanged(txn, Decision.ABORTED),)


def test_how_it_ended_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transactions, "ENDED_LIMIT", 1)
    log, first = begun()
    second = log.reply(c.BeginTransaction({"a": b""}, 10.0)).txn
    for txn in (first, second):
        log.reply(c.DecideTransaction(txn, False))
    assert log.reply(c.DecideTransaction(first, True)).decision is Decision.FORGOTTEN
    assert log.reply(c.DecideTransaction(second, True)).decision is Decision.ABORTED


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (c.BeginTransaction({}, 10.0), "LimitError"),
        (c.BeginTransaction({str(n): b"" for n in range(257)}, 10.0), "LimitError"),
        (c.BeginTransaction({"a": bytes(65537)}, 10.0), "LimitError"),
        (c.BeginTransaction({"a": b""}, 0.0), "UsageError"),
        (c.BeginTransaction({"a": b""}, float("nan")), "UsageError"),
        (c.BeginTransaction({"a": b""}, 601.0), "UsageError"),
    ],
)
def test_what_is_too_large_or_too_long_is_refused(command: c.BeginTransaction, error: str):
    assert Log().refused(command).error == error


def test_the_number_of_transactions_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transactions, "TRANSACTIONS_LIMIT", 1)
    log, txn = begun()
    assert log.refused(c.BeginTransaction({"a": b""}, 10.0)).error == "LimitError"
    log.reply(c.DecideTransaction(txn, False))
    log.reply(c.BeginTransaction({"a": b""}, 10.0))
