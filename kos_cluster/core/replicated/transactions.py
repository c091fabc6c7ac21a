"""Two-phase commit's memory: what the coordinators of a transaction have agreed, so that any successor can end it.

Theory of operation (Bernstein, Hadzilacos & Goodman, 1987, section 7.4; Gray & Lamport, "Consensus on Transaction
Commit", 2006; presumed abort: Mohan & Lindsay, 1983). A transaction's number is the log index of its beginning. The
decision is a command, so the first one in the log stands, whoever proposed it; `core.twophase` says to participants
only what is here. A commit is kept until every participant has made it durable. An abort need not be kept: whoever
asks about a transaction that is not here, although its beginning has been applied, is told to abort.

Rules: without a decision by its deadline on the replicated clock a transaction is aborted. How the last `ENDED_LIMIT`
transactions ended is remembered for late proposals of a decision; no participant depends on it.

    state       command or clock     next
    -           begin                open
    open        decide to commit     committed
    open        decide to abort      - (aborted)
    open        deadline             - (aborted)
    committed   any decision         committed
    committed   the last ack         - (committed)
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.replicated.commands import AckTransaction, BeginTransaction, DecideTransaction
from kos_cluster.core.replicated.deadlines import Deadlines
from kos_cluster.core.replicated.replies import Change, Decision, TransactionChanged, TransactionState
from kos_cluster.errors import LimitError, UsageError

TRANSACTIONS_LIMIT = 1024  # open or committed at once
PARTICIPANTS_LIMIT = 256
PAYLOADS_LIMIT_BYTES = 64 << 10  # of one transaction's participants together, their ids included
TTL_LIMIT_S = 600.0
ENDED_LIMIT = 4096  # ended transactions whose end is remembered


class Transaction(msgspec.Struct):
    """`participants`: node id -> what it prepares. `unacked` are those that may not have made the commit durable."""

    txn: int
    participants: dict[str, bytes]
    deadline_s: float
    committed: bool = False
    unacked: list[str] = []


class Ended(msgspec.Struct, frozen=True):
    txn: int
    committed: bool


class Transactions:
    """The transactions that are not over."""

    def __init__(self, restored: list[Transaction], ended: list[Ended]) -> None:
        self._open = {transaction.txn: transaction for transaction in restored}
        self._ended = {entry.txn: entry.committed for entry in ended}
        self._ends = Deadlines()
        for transaction in restored:
            if not transaction.committed:
                self._ends.set(str(transaction.txn), transaction.deadline_s)

    def snapshot(self) -> list[Transaction]:
        return list(self._open.values())

    def ended(self) -> list[Ended]:
        return [Ended(txn, committed) for txn, committed in self._ended.items()]

    @property
    def due_s(self) -> float:
        """No transaction is aborted for its age before."""
        return self._ends.earliest_s

    def get(self, txn: int) -> Transaction | None:
        return self._open.get(txn)

    def decision(self, txn: int) -> Decision:
        """Where a transaction stands. Only for numbers that have been applied."""
        transaction = self._open.get(txn)
        if transaction is not None:
            return Decision.COMMITTED if transaction.committed else Decision.OPEN
        committed = self._ended.get(txn)
        if committed is None:
            return Decision.FORGOTTEN
        return Decision.COMMITTED if committed else Decision.ABORTED

    def begin(self, command: BeginTransaction, index: int, clock_s: float) -> TransactionState:
        """Raises UsageError or LimitError."""
        if not 0 < command.ttl_s <= TTL_LIMIT_S:
            raise UsageError(f"A transaction cannot take {command.ttl_s:g} s; the limit is {TTL_LIMIT_S:g} s.")
        if not 0 < len(command.participants) <= PARTICIPANTS_LIMIT:
            raise LimitError(
                f"A transaction of {len(command.participants)} participants; it must be 1 to {PARTICIPANTS_LIMIT}."
            )
        size_bytes = sum(len(name) + len(payload) for name, payload in command.participants.items())
        if size_bytes > PAYLOADS_LIMIT_BYTES:
            raise LimitError(f"A transaction carries {size_bytes} bytes; the limit is {PAYLOADS_LIMIT_BYTES}.")
        if len(self._open) >= TRANSACTIONS_LIMIT:
            raise LimitError(f"{TRANSACTIONS_LIMIT} transactions are open already, which is the limit.", "Try later.")
        self._open[index] = Transaction(index, dict(sorted(command.participants.items())), clock_s + command.ttl_s)
        self._ends.set(str(index), clock_s + command.ttl_s)
        return TransactionState(index, Decision.OPEN)

    def decide(self, command: DecideTransaction) -> tuple[TransactionState, list[Change]]:
        """The decision that stands, which may be another one."""
        transaction = self._open.get(command.txn)
        if transaction is None or transaction.committed:
            return TransactionState(command.txn, self.decision(command.txn)), []
        self._ends.drop(str(command.txn))
        if command.commit:
            transaction.committed, transaction.unacked = True, list(transaction.participants)
        else:
            self._end(command.txn, committed=False)
        state = self.decision(command.txn)
        return TransactionState(command.txn, state), [TransactionChanged(command.txn, state)]

    def ack(self, command: AckTransaction) -> tuple[TransactionState, list[Change]]:
        transaction = self._open.get(command.txn)
        if transaction is not None and transaction.committed:
            transaction.unacked = [name for name in transaction.unacked if name not in command.participants]
            if not transaction.unacked:
                self._end(command.txn, committed=True)
        return TransactionState(command.txn, self.decision(command.txn)), []

    def expire(self, clock_s: float) -> list[Change]:
        """Abort what is undecided for too long."""
        changes: list[Change] = []
        for key in self._ends.due(clock_s):
            self._end(int(key), committed=False)
            changes.append(TransactionChanged(int(key), Decision.ABORTED))
        return changes

    def _end(self, txn: int, committed: bool) -> None:
        del self._open[txn]
        self._ended[txn] = committed
        while len(self._ended) > ENDED_LIMIT:
            del self._ended[next(iter(self._ended))]
