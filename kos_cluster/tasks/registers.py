"""A register of the cluster: a small named text that all nodes agree on, with compare-and-set.

Theory of operation. What is written is decided by the voters, and what is read holds everything that was decided before
it was asked (a read index), through whichever node answers. So all programs together see one register, as if there were
one copy of it that serves one call after the other.

Rules: a read is asked again while nodes fail. A write is not: when no answer comes it may have been done, or be done
later, and a second one could undo what another program wrote meanwhile. That is said, and is for the caller to decide.
"""

from __future__ import annotations

import time
from typing import Protocol, TypeVar

from kos_cluster.core.names import checked
from kos_cluster.errors import UnreachableError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.tasks.asking import DECISION_TIMEOUT_S

FAILOVER_S = 20.0  # for which the answer to a read is looked for when nodes fail or cannot decide
PAUSE_S = 0.1  # between two tries

T = TypeVar("T")


class Asks(Protocol):
    """The connection to the cluster; see `tasks.mesh`."""

    def request(self, question: wire.Asked, kind: type[T], *, timeout_s: float) -> T: ...


class Register:
    """Get it from `cluster.register(name)`, which raises UsageError for a name that cannot be. Not set, it is None.

    Each call raises UnreachableError when the cluster cannot decide, LimitError for a value that is too large.
    """

    def __init__(self, mesh: Asks, name: str) -> None:
        self.name = checked(name, "register")
        self._mesh = mesh

    def get(self) -> str | None:
        """Its value: what was written last, by anybody, before this call."""
        return read(self._mesh, self.name)[self.name]

    def set(self, value: str | None) -> None:
        """Write it, whatever it holds; None removes it."""
        self._write(RegisterWritten(self.name, _text(value)))

    def compare_and_set(self, expected: str | None, value: str | None) -> bool:
        """Write it if it holds `expected`, and say whether it did. Of several who try, one succeeds."""
        return self._write(RegisterWritten(self.name, _text(value), True, _text(expected)))

    def __repr__(self) -> str:
        return f"<kos Register {self.name!r}>"

    def _write(self, question: RegisterWritten) -> bool:
        try:
            return self._mesh.request(question, bool, timeout_s=DECISION_TIMEOUT_S)
        except UnreachableError as error:
            raise UnreachableError(
                f"Whether the register {self.name!r} was written is not known: {error.message}",
                "Read it, then decide.",
            ) from error


def read(mesh: Asks, name: str = "", patience_s: float = FAILOVER_S) -> dict[str, str | None]:
    """One register, set or not; or all that are set. Asked again while nodes fail. Raises UnreachableError."""
    deadline_s = time.monotonic() + patience_s
    timeout_s = min(DECISION_TIMEOUT_S, patience_s)
    while True:
        try:
            return mesh.request(RegistersAsked(name), dict[str, str | None], timeout_s=timeout_s)
        except UnreachableError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(PAUSE_S)


def _text(value: str | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"A register holds a string, not a {type(value).__name__}.", "Write it as text, with json.dumps say."
        )
    return value
