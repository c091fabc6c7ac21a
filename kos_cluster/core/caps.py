"""How many batches count against each cap (`max_parallel`): jobs of one group share one.

Rules. A job without a group is one of its own, and is not counted here. Only groups with batches out are kept.
"""

from __future__ import annotations

from collections import Counter

from kos_cluster.core.jobrows import JobRow


class Caps:
    """Told of every batch that is sent, and that ends."""

    def __init__(self) -> None:
        self._out: Counter[str] = Counter()

    def sent(self, job: JobRow) -> None:
        if job.spec.group:
            self._out[job.spec.group] += 1

    def ended(self, job: JobRow) -> None:
        if job.spec.group:
            self._out[job.spec.group] -= 1
            if not self._out[job.spec.group]:
                del self._out[job.spec.group]

    def out(self, job: JobRow) -> int:
        """How many batches count against the job's cap."""
        return self._out[job.spec.group] if job.spec.group else len(job.batches)
