"""The gangs of one life of an engine: the first one, with the head in it, and those of workers that came later.

Rules. One further gang at a time waits for its slots, and one that nobody wants any more is withdrawn. Lost ranks are
replaced at once, but after a pause when those that came last had begun less than `STEADY_S` before: what fails at once
does not fail all the time. That pause, from when they had begun, doubles each time, up to `PAUSE_MOST_S`. A further
gang that has ended is forgotten once it was told what has become of it. Used by the supervisor's thread alone.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kos_cluster.core.jobrows import CANCELLED, DONE, FAILED
from kos_cluster.errors import GangError, KosError, PlacementError
from kos_cluster.services.engines import ranks
from kos_cluster.services.engines.engine import Address
from kos_cluster.services.engines.spec import Spec

if TYPE_CHECKING:
    from kos_cluster.tasks.cluster import Cluster
    from kos_cluster.tasks.gangs import Gang

PAUSE_S = 0.5  # the shortest, before workers are replaced that did not last
PAUSE_MOST_S = 60.0
STEADY_S = 30.0  # that workers last, for the next loss to be replaced at once
_ENDED = frozenset({DONE, FAILED, CANCELLED})


class Crews:
    """Begins with the first gang, and ends with all of them."""

    def __init__(self, cluster: Cluster, spec: Spec, workers: int, life: int) -> None:
        self._cluster = cluster
        self._spec = spec
        self._first = self._gang(ranks.serve_first, 1 + workers, life, vital=1)
        self._gangs = [self._first]
        self._further: Gang | None = None  # waits for its slots
        self._told: set[tuple[str, int]] = set()  # ranks whose loss was told
        self._pause_s = 0.0
        self._began_s = float("-inf")  # when further workers came last, or could not
        self._missed = False  # some have been since then

    @property
    def placed(self) -> bool:
        """Whether the first gang has its slots."""
        return bool(self._first.nodes)

    def waits_for(self) -> str:
        """Why the first gang has no slots yet; empty when it has, or while nobody can tell."""
        if self.placed:
            return ""
        try:
            return "; ".join(row.why for row in self._cluster.why(self._first.id))
        except KosError:  # no node answers, which passes
            return ""

    @property
    def head_node(self) -> str:
        """The name of the node that the head is on."""
        return self._first.nodes[0]

    @property
    def workers(self) -> int:
        """Ranks of workers that have not ended, those on their way included."""
        left = sum(self._left(gang) for gang in self._gangs)
        return max(0, left - 1)  # the head

    @property
    def waits(self) -> bool:
        """Whether further workers wait for their slots."""
        return self._further is not None

    def failure(self) -> str:
        """How the first gang has ended, and the head with it; empty while it runs. Raises PlacementError."""
        if not self._first.done():
            return ""
        error = _error(self._first)
        if isinstance(error, PlacementError):
            raise error
        return _told(error) if error is not None else "its head has ended"

    def lost(self) -> str:
        """What ranks were lost since this was last asked; empty: none."""
        lines = []
        for gang in list(self._gangs):
            ended = gang.done()
            for rank, error in sorted(gang.gone.items()):
                if (gang.id, rank) not in self._told:
                    self._told.add((gang.id, rank))
                    lines.append(_told(error))
            if ended and gang not in (self._first, self._further):
                if error_of_all := _error(gang):
                    lines.append(_told(error_of_all))
                self._forget(gang)
        return "; ".join(dict.fromkeys(lines))

    def grow(self, count: int, address: Address) -> None:
        """Ask for so many further workers."""
        assert self._further is None
        self._further = self._gang(ranks.serve_further, count, address, vital=0)
        self._gangs.append(self._further)

    def settled(self) -> str:
        """Why further workers cannot be had, if that has become known; empty when they have their slots, or wait."""
        further = self._further
        if further is None or not (further.nodes or further.done()):
            return ""
        self._further = None
        self._began_s = time.monotonic()
        if further.nodes:
            return ""
        self._forget(further)
        error = _error(further)
        return _told(error) if error is not None else "they have ended"

    def withdraw(self) -> None:
        """Want no more of further workers that wait."""
        if self._further is not None:
            self._further.cancel()
            self._forget(self._further)
            self._further = None

    def keep(self, wanted: int, address: Address) -> None:
        """Ask for workers in place of those that are missing, if any are and the pause is over."""
        missing = wanted - self.workers
        if missing <= 0:
            self._missed = False
            return
        lasted_s = time.monotonic() - self._began_s
        if not self._missed and lasted_s > STEADY_S:
            self._pause_s = 0.0
        self._missed = True
        if lasted_s >= self._pause_s:
            self._missed = False
            self._pause_s = min(max(PAUSE_S, 2 * self._pause_s), PAUSE_MOST_S)
            self.grow(missing, address)

    def end(self) -> None:
        """Stop all ranks."""
        for gang in self._gangs:
            gang.cancel()

    def _gang(self, fn: Callable[..., None], count: int, *args: Any, vital: int) -> Gang:
        spec = self._spec
        name = f"engine {spec.name}" if vital else f"engine {spec.name}, further workers"
        return self._cluster.gang(
            fn, count, spec, *args, vital=vital, cpus=spec.cpus, memory=spec.memory_bytes, name=name
        )

    def _forget(self, gang: Gang) -> None:
        self._gangs.remove(gang)
        self._told = {(id_, rank) for id_, rank in self._told if id_ != gang.id}

    def _left(self, gang: Gang) -> int:
        """Its ranks that have not ended."""
        return 0 if gang.done() else sum(state not in _ENDED for state in self._cluster.states(gang.jobs[-1]))


def _error(gang: Gang) -> BaseException | None:
    """What one that has ended has ended with."""
    try:
        return gang.exception()
    except concurrent.futures.CancelledError as error:
        return error


def _told(error: BaseException) -> str:
    """What has happened to a gang or rank, without what it is called there."""
    cause = error.__cause__ if isinstance(error, GangError) and error.__cause__ is not None else error
    text = cause.message if isinstance(cause, KosError) else f"{type(cause).__name__}: {cause}"
    told, _, output = text.partition("; its last output was:")
    return f"{told})" if output else text.rstrip(".")
