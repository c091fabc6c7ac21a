"""What a supervisor reads and writes in the cluster's registers.

Theory of operation. The record is written with compare-and-set over what this supervisor wrote last. While the cluster
cannot decide, or has no room, what is to be written waits: the engine works on, and the next look writes it
(`catch_up`). A write whose answer was lost may have been done; the register is read before the next one.

Rules. A record that others have written over ours, or removed, means that another supervisor has taken over, or that
the engine was given up: `Superseded`, which each `CHECKED_AGAIN_S` at most is looked for. Nothing else that is in a
register, or that a register refuses, ends an engine that works; it is printed. What the head counts changes all the
time, and is written each `COUNTS_AGAIN_S` at most.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Never, TypeVar

import msgspec

from kos_cluster.errors import EngineError, KosError, StateError, UnreachableError
from kos_cluster.services.engines.registers import decoded, encoded, forget, sweep
from kos_cluster.services.engines.spec import Began, Record, Wanted, head_of, record_of, shortened, wanted_of
from kos_cluster.services.engines.troubles import Troubles

if TYPE_CHECKING:
    from kos_cluster.services.engines.engine import Standing
    from kos_cluster.tasks.cluster import Cluster

COUNTS_AGAIN_S = 1.0
CHECKED_AGAIN_S = 5.0

T = TypeVar("T")


class Superseded(EngineError):
    """The register is another's."""


class Ledger:
    """Of one engine."""

    def __init__(self, cluster: Cluster, record: Record, troubles: Troubles) -> None:
        self.record = record
        self._troubles = troubles
        self._cluster = cluster
        self._register = cluster.register(record_of(record.name))
        self._written: str | None = None
        self._unsure: str | None = None  # what a write without an answer may have written
        self._counted_s = float("-inf")
        self._checked_s = float("-inf")
        self._wanted: Wanted | None = None  # as it was read last

    def claim(self) -> Record | None:
        """Write the first record where there is none; else the one that is there, ours if it is this engine's.

        Raises what refuses it: LimitError, StateError for what is no record.
        """
        held = self._register.get()
        if held is None:
            try:
                with suppress(UnreachableError):
                    self._flush()
                    sweep(self._cluster, self.record.name, lambda engine: engine != self.record.id)
                return None
            except Superseded:  # somebody was faster
                held = self._register.get()
                if held is None:
                    raise
        former = decoded(self._register.name, held, Record)
        if former.id == self.record.id:
            self._written, self.record = held, former
        return former

    def write(self, **changes: Any) -> None:
        """Change the record, at the next `catch_up` if that cannot be now. Raises Superseded."""
        if "why" in changes:
            changes |= {"why": shortened(changes["why"]), "why_s": time.time()}
        self.record = msgspec.structs.replace(self.record, **changes)
        self.catch_up()

    def catch_up(self) -> None:
        """Write what could not be written yet. Raises Superseded."""
        try:
            self._flush()
        except Superseded:
            raise
        except KosError as error:
            self._trouble(self._register.name, error)
        else:
            self._troubles.over(self._register.name)

    def count(self, standing: Standing) -> None:
        """Write what the head counts; the number of workers at once."""
        workers = len(standing.workers)
        now = time.monotonic()
        if workers != self.record.workers or now - self._counted_s > COUNTS_AGAIN_S:
            self._counted_s = now
            self.write(
                workers=workers, waiting=standing.waiting, running=standing.running, held_bytes=standing.held_bytes
            )

    def answer(self, wanted: Wanted, refusal: str) -> None:
        self.write(answered=wanted.id, refusal=shortened(refusal))

    def wanted(self) -> Wanted | None:
        """A wish for this engine that has no answer yet. While nobody can tell, it is the one that there was."""
        wanted = self._wanted = self._read(wanted_of(self.record.name), Wanted, self._wanted)
        if wanted is None or wanted.engine != self.record.id or wanted.id == self.record.answered:
            return None
        return wanted

    def began(self) -> Began | None:
        """That the head and the workers of this life serve."""
        began = self._read(head_of(self.record.name), Began, None)
        return began if began is not None and (began.engine, began.life) == (self.record.id, self.record.life) else None

    def forget(self) -> None:
        """Remove all that is written of it, if it is ours."""
        ours = {self._written, self._unsure} - {None}
        if ours and self._register.get() in ours:
            forget(self._cluster, self.record.name, self.record.id)

    def _read(self, name: str, kind: type[T], otherwise: T | None) -> T | None:
        """`otherwise` while nobody can tell, which is no reason to end an engine that works."""
        try:
            text = self._cluster.register(name).get()
            value = None if text is None else decoded(name, text, kind)
        except StateError as error:
            self._trouble(name, error)
            return None
        except KosError as error:
            self._trouble(name, error)
            return otherwise
        self._troubles.over(name)
        return value

    def _trouble(self, name: str, error: KosError) -> None:
        if not isinstance(error, UnreachableError):  # that passes, and is told by all that asks the cluster
            self._troubles.came(name, error.message if isinstance(error, StateError) else str(error))

    def _flush(self) -> None:
        text = encoded(self.record)
        if self._unsure is not None:
            held = self._register.get()
            if held == self._unsure:
                self._written = held
            self._unsure = None
        if text == self._written:
            self._check()
            return
        self._unsure = text
        done = self._register.compare_and_set(self._written, text)
        self._unsure = None
        if not done:
            self._displaced(self._register.get())
        self._written = text

    def _check(self) -> None:
        """Whether the register still holds what was written. Raises as `_displaced`."""
        now = time.monotonic()
        if now - self._checked_s > CHECKED_AGAIN_S:
            self._checked_s = now
            held = self._register.get()
            if held != self._written:
                self._displaced(held)

    def _displaced(self, held: str | None) -> Never:
        """Another text is there. Raises Superseded; StateError for what is no record, which is written over."""
        name, self._written = self.record.name, None
        if held is None:
            raise Superseded(f"The record of engine {name!r} was removed.")
        self._written = held
        decoded(self._register.name, held, Record)
        self._written = None
        raise Superseded(f"Another supervisor has taken over engine {name!r}.")
