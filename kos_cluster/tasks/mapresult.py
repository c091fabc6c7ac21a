"""What `cluster.map` gives: the results of many tasks, in order, as they are asked for.

Rules. A result is taken from its job when it is reached, so that one which nobody holds is not kept. Asking for
`futures` keeps them.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

from kos_cluster.tasks import showing
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.job import Job


class MapResult:
    """The results of `map`, in order. Iterating waits; an exception of a task is raised at its place."""

    def __init__(self, job: Job) -> None:
        self.job = job.id
        self._job = job
        self._next = 0
        self._futures: list[Future] | None = None

    def __len__(self) -> int:
        return len(self._job)

    def __iter__(self) -> MapResult:
        return self

    def __next__(self) -> Any:
        if self._next >= len(self._job):
            raise StopIteration
        index, self._next = self._next, self._next + 1
        if self._futures is not None:
            return self._futures[index].result()
        try:
            outcome = self._job.take(index)
        except KeyboardInterrupt:
            self._next = index  # it was not taken
            self.cancel()
            raise
        if isinstance(outcome, Outcome):
            try:
                return outcome.value()
            except StopIteration as error:  # would end the caller's loop as if there were no more results
                raise RuntimeError(f"Task {self.job}.{index} raised StopIteration.") from error
        raise outcome or concurrent.futures.CancelledError(f"Task {self.job}.{index} was cancelled.")

    @property
    def futures(self) -> list[Future]:
        """A future for each element. Ask before iterating; those that were taken already are left out."""
        if self._futures is None:
            taken = self._next
            self._futures = [self._job.future(index) for index in range(taken, len(self._job))]
            self._next = 0
        return self._futures

    def failures(self) -> list[BaseException]:
        """The failures that have come by now, of elements that were not reached by the iteration."""
        return self._job.failures()

    def cancel(self) -> None:
        """Cancel what is not done yet."""
        self._job.cancel()

    def __repr__(self) -> str:
        return f"<kos MapResult {self.job}, {showing.progress(len(self), self._job.counts())}>"

    def _repr_html_(self) -> str:
        return showing.results(repr(self), len(self), self._job.counts())
