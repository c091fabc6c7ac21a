"""Every error that KOS raises, as one tree.

Rules: a message is a sentence that says what happened and where; `hint` is what to type or change next. Each class
has a stable `exit_code`, which the `kos` command returns. Errors survive pickling, so a node can raise them at its
client. An exception raised by user code keeps its own type and is not in this tree (see `tasks.failures`).
"""

from __future__ import annotations


class KosError(Exception):
    """The root. `str()` is the message followed by the hint."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(KosError):
    """The request itself is wrong: a bad argument, a missing file, a cell that does not parse."""

    exit_code = 2


class NotInClusterError(KosError):
    """This machine or user belongs to no cluster, or not to the one that was named."""

    exit_code = 3


class UnreachableError(KosError):
    """A node did not answer."""

    exit_code = 4


class NoSuchNodeError(KosError):
    """No node of that name is in the cluster."""

    exit_code = 5


class NoSuchTaskError(KosError):
    """No node knows a job or task of that id."""

    exit_code = 5


class AuthError(KosError):
    """The identity is unknown, expired, or its role does not allow the command."""

    exit_code = 6


class RevokedError(AuthError):
    """The certificate is denied: its holder was removed from the cluster, or goes on with a newer one."""


class JoinError(KosError):
    """A join was refused: token, cluster name, certificate authority or version."""

    exit_code = 7


class PortTakenError(KosError):
    """A port that a node needs is in use."""

    exit_code = 8


class IncompatibleError(KosError):
    """Two sides run versions that cannot work together."""

    exit_code = 9


class LimitError(KosError):
    """Something is larger than its named limit. The message names the largest parts."""

    exit_code = 10


class NotPicklableError(KosError, TypeError):
    """A function, argument, result or variable cannot travel. The message names the object inside it that cannot."""

    exit_code = 11


class PlacementError(KosError):
    """No node can ever run the task. The message lists each node's reason."""

    exit_code = 12


class TaskLostError(KosError):
    """A task's worker or node was lost as often as its retries allow; the message names node, cause and attempts."""

    exit_code = 13


class TaskTimeoutError(KosError, TimeoutError):
    """A task ran longer than its `timeout`."""

    exit_code = 14


class ProtocolError(KosError):
    """A peer sent something that is not KOS's wire format, or of another wire version."""

    exit_code = 15


class SetUpError(KosError):
    """A worker could not be set up for a task: its environment, workspace, script or initializer failed."""

    exit_code = 17


class StateError(KosError):
    """State on this machine's disk is missing, damaged or in use by another process."""

    exit_code = 16


class LockHeldError(KosError):
    """A lock is held by another, or no longer by who believes to hold it."""

    exit_code = 18


class ConflictError(KosError):
    """A register is not what the writer expected it to be."""

    exit_code = 19


class ArenaFullError(KosError):
    """A node has no room for a block: its arena is full, or the machine's memory is."""

    exit_code = 21


class BlockLostError(KosError):
    """A block is on no node any more: it was dropped, its owner has ended, or the nodes that had it are lost."""

    exit_code = 21


class InputFailedError(KosError):
    """A task was not run, since one whose result it takes failed, or was cancelled. Its cause is that one's error."""

    exit_code = 22


class GangError(KosError):
    """A gang did not start, or ended before all of its ranks had returned; the message names rank, node and cause."""

    exit_code = 23


class RankGoneError(GangError):
    """A rank waited for another one that has ended. Says which; why that one ended is told by the gang."""

    def __init__(self, message: str, hint: str = "", rank: int | None = None) -> None:
        super().__init__(message, hint)
        self.rank = rank  # the one that has ended


class CollectiveTimeoutError(GangError, TimeoutError):
    """Some ranks waited too long in a collective for others, which the message names."""


class EngineError(KosError):
    """An engine (Dask, Ray) did not start, or has died; the message says which, where, and what was lost."""

    exit_code = 24
