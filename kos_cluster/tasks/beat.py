"""The beat of an owner: each second it tells every node what it holds to be there, and judges who is silent.

Theory of operation. Nothing relies on one message arriving: a node answers an `OwnerBeat` with the batches that it does
not know, and stops those that are not named; the other parts of the connection mend with each beat what was lost of
theirs. Nodes hear one without work, too: they forget owners that they do not hear of.

Rules: the mesh thread may be starved for minutes by a cell that holds the GIL. After such a silence it catches up with
what has arrived before it judges anybody's silence. A node that is silent is lost only when it holds work of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from kos_cluster.core.ownership import Ownership
from kos_cluster.net import wire
from kos_cluster.tasks.attachment import Attachment
from kos_cluster.tasks.jobtable import JobTable
from kos_cluster.tasks.output import PROGRESS_EVERY_S

BEAT_S = 1.0
NODE_SILENT_S = 5.0  # a node that holds our work and is silent for longer is lost
STALL_S = 1.5  # a turn of the loop that comes later than this was starved: silence means nothing then
ANNOUNCE_AFTER_S = 0.1  # a new job is told to the nodes this soon


class Beat:
    """Used in the mesh thread. `tick` has the owner's table look at the time; `duties` are done with each beat."""

    def __init__(
        self,
        attachment: Attachment,
        core: Ownership,
        jobs: JobTable,
        tick: Callable[[], None],
        duties: Sequence[Callable[[], None]],
    ) -> None:
        self._attachment = attachment
        self._core = core
        self._jobs = jobs
        self._tick = tick
        self._duties = duties
        self._announcing = False

    async def run(self) -> None:
        """Every `PROGRESS_EVERY_S`: progress, and what could not be placed; every `BEAT_S`: the nodes."""
        expected = next_beat = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            now = time.monotonic()
            if now - expected > STALL_S:
                for link in self._attachment.links():
                    link.heard_s = now
            expected = now + PROGRESS_EVERY_S
            self._jobs.show_progress(now, self._attachment.waits_on)
            self._tick()
            if now >= next_beat:
                next_beat = now + BEAT_S
                self._beat(now)

    def announce(self) -> None:
        """Let the nodes list new jobs before the next beat, which alone knows whether silence means something."""
        if not self._announcing:
            self._announcing = True
            asyncio.get_running_loop().call_later(ANNOUNCE_AFTER_S, self._announce)

    def _announce(self) -> None:
        self._announcing = False
        self._tell()

    def _beat(self, now: float) -> None:
        self._attachment.greet_lost()
        self._attachment.give_up_dead()
        for duty in self._duties:
            duty()
        for id_, link in list(self._attachment.by_node.items()):
            if now - link.heard_s > NODE_SILENT_S and self._core.outstanding(id_):
                self._attachment.down(id_, f"it has been silent for {now - link.heard_s:.0f} s")
        self._tell()

    def _tell(self) -> None:
        jobs = self._jobs.told()
        for id_, link in self._attachment.by_node.items():
            link.send(wire.OwnerBeat(self._attachment.view_of(id_), self._core.outstanding(id_), jobs))
