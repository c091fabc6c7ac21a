"""Defects of what is above and beside Raft: the state that it applies to, fences, two-phase commits, and SWIM.

Each is a function in place of one of the product's, kept as short as the mistake is; the table at the end plants them.
"""

from __future__ import annotations

from typing import Any

from kos_cluster.core import twophase
from kos_cluster.core.fencing import Fence
from kos_cluster.core.replicated.commands import DecideTransaction
from kos_cluster.core.replicated.jobs import Jobs
from kos_cluster.core.replicated.locks import Locks
from kos_cluster.core.replicated.replies import ResultsCommitted
from kos_cluster.core.replicated.sessions import Sessions
from kos_cluster.core.replicated.settings import Settings
from kos_cluster.core.replicated.stamp import Stamp
from kos_cluster.core.swim.beliefs import Beliefs
from kos_cluster.core.swim.table import Table
from kos_cluster.sim.defects import Mutant

# ---- the applied state


def _nobody(self: Any) -> list[Any]:
    return []


def _no_memory(self: Any, number: int, serial: int, answered_below: int, clock_s: float) -> None:
    return None


def _swap_unchecked(self: Any, name: str, expected: str | None, value: str | None) -> None:
    self.set(name, value)


def _drive_in_any_epoch(self: Any, id: str, epoch: int) -> Any:
    return self._get(id)


def _commit_again(self: Any, command: Any) -> ResultsCommitted:
    self._driven(command.id, command.epoch)
    return ResultsCommitted(tuple(result.task for result in command.results), ())


def _commit_after_one_vote(self: Any, transaction: Any, round_: Any, now: float) -> Any:
    if round_.yes and not transaction.committed:
        return [twophase.Propose(DecideTransaction(transaction.txn, True))]
    return _CARRY_ON(self, transaction, round_, now)


_CARRY_ON = twophase.Coordinator._carry_on


def _presume_abort(self: Any, sender: str, txn: int) -> Any:
    transaction = self._state.transactions.get(txn)
    commit = transaction is not None and transaction.committed
    return [twophase.Send(sender, twophase.Decided(txn, commit))]


def _start_unbound(self: Any, prepared: Any, ended: Any, forgotten: int, now: float) -> None:
    _BIND(self, (), ended, forgotten, now)


_BIND = twophase.Participant.__init__


def _wall_alone(self: Any, wall_s: float, now: float) -> float:
    return wall_s


def _wall_unless_behind(self: Any, wall_s: float, now: float) -> float:
    return max(wall_s, self._clock_s + now - self._at_s) if self._clock_s else wall_s


def _admit_all(self: Any, token: int) -> None:
    pass


def _same_token(self: Any, lock: Any, owner: str, holder: str, ttl_s: float, clock_s: float) -> None:
    self.last_token = 0
    _GIVE(self, lock, owner, holder, ttl_s, clock_s)


_GIVE = Locks._give

# ---- membership


def _believe_old(self: Any, member: Any, row: Any) -> None:
    return None


def _never_refute(self: Any, id: str, incarnation: int, sender: str, now: float) -> Any:
    row = self.row(id)
    if id == self.id or row is None or incarnation != row.member.incarnation:
        return None
    return row


def _forget_the_dead(self: Any) -> list[str]:
    return []


ABOVE: dict[str, Mutant] = {
    "snapshot-forgets-sessions": Mutant(
        "a snapshot lacks the session table", ((Sessions, "snapshot", _nobody),), ("crash", "partition", "loss")
    ),
    "dedup-forgotten": Mutant(
        "a retried proposal is applied again", ((Sessions, "recall", _no_memory),), ("loss", "delay", "crash")
    ),
    "swap-unchecked": Mutant(
        "compare-and-set does not compare", ((Settings, "swap", _swap_unchecked),), ("delay", "crash")
    ),
    "stamps-by-wall-clock": Mutant(
        "commands are stamped with the wall clock alone, so that leases may never end",
        ((Stamp, "now_s", _wall_alone),),
        ("clock", "transfer"),
    ),
    "stamps-leap": Mutant(
        "a wall clock that is set forward takes the replicated clock along at once, and ends leases",
        ((Stamp, "now_s", _wall_unless_behind),),
        ("clock", "transfer"),
    ),
    "stale-epoch": Mutant(
        "a driver of an earlier epoch commits results", ((Jobs, "_driven", _drive_in_any_epoch),), ("delay", "crash")
    ),
    "second-result": Mutant(
        "a task's result is committed twice", ((Jobs, "commit", _commit_again),), ("delay", "crash")
    ),
    "commit-lacks-votes": Mutant(
        "a transaction is committed when one participant has voted yes",
        ((twophase.Coordinator, "_carry_on", _commit_after_one_vote),),
        ("crash", "delay", "loss"),
    ),
    "abort-while-open": Mutant(
        "who asks about a transaction that is open is told that it was aborted",
        ((twophase.Coordinator, "_answer", _presume_abort),),
        ("loss", "partition", "pause", "crash"),
    ),
    "reservation-forgotten": Mutant(
        "a participant starts without what it had reserved",
        ((twophase.Participant, "__init__", _start_unbound),),
        ("crash", "loss"),
    ),
    "lease-without-fencing": Mutant(
        "a resource lets late holders in", ((Fence, "admit", _admit_all),), ("crash", "delay", "clock")
    ),
    "token-given-twice": Mutant(
        "leases of one lock have one token", ((Locks, "_give", _same_token),), ("crash", "delay", "clock")
    ),
    "swim-old-incarnation": Mutant(
        "a record of an older incarnation is believed",
        ((Beliefs, "_why_not", _believe_old),),
        ("crash", "partition", "stray"),
        membership=True,
    ),
    "swim-no-refutation": Mutant(
        "an accused node does not refute",
        ((Beliefs, "_accused", _never_refute),),
        ("partition", "pause", "loss"),
        membership=True,
    ),
    "swim-dead-for-good": Mutant(
        "nobody tries the dead again",
        ((Table, "dead_ids", _forget_the_dead),),
        ("partition",),
        membership=True,
        seconds=60.0,
    ),
}
