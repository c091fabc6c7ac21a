"""One look at a cluster, shared by all monitors of this process: so a monitor that is opened later has the history too.

Rules: a model is read and changed under the pacing's lock. A watch goes on while its process does, and costs nothing
while nobody looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.pacing import Pacing
from kos_cluster.services.monitor.sampler import Sampler

_watches: dict[str, Watch] = {}
_making = threading.Lock()


class Watch:
    """A model with what keeps it up to date, and whom to tell after each sample."""

    def __init__(self, sampler: Sampler) -> None:
        self.model = Model()
        self.sampler = sampler
        self.listeners: list[Callable[[], None]] = []
        self.pacing = Pacing(sampler, self.model, self._tell)

    def _tell(self) -> None:
        for listener in list(self.listeners):
            listener()


def watch(name: str | None) -> Watch:
    """The watch of the cluster of this name, or of the one that `connect` finds. Raises what `connect` raises."""
    sampler = Sampler(name)
    found = sampler.cluster().name
    with _making:
        if found not in _watches:
            _watches[found] = Watch(Sampler(found))
        known = _watches[found]
    seen = known.sampler.sample()
    with known.pacing.lock:
        known.model.handle(seen)
    return known
