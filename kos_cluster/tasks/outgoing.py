"""What an owner sends: batches and the parts that a node lacks, small ones on the control link, large ones over TLS.

Rules. A part is sent to a node once, as far as we know; the node asks again for what it lacks. Arguments of
`BULK_BYTES` and more travel as parts, and so do large results that tasks take, so equal ones travel once to each
node.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

import msgspec

from kos_cluster.core.ownership import Dispatch
from kos_cluster.core.records import Attempt, Runs, indices_of
from kos_cluster.errors import KosError
from kos_cluster.net import wire
from kos_cluster.net.bulk import put_part
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.net.transport import Payload
from kos_cluster.tasks.job import Job, part_hash

OVERSIZE_BYTES = 8 << 20  # a batch whose payloads are larger together sends its larger ones as parts
OVERSIZE_PART_BYTES = 1 << 10  # what counts as larger then

_encode = msgspec.msgpack.encode


class Outgoing:
    """Sends batches and their parts. Used in the mesh thread only."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._bulk: dict[tuple[str, str], asyncio.Task[None]] = {}  # (address, hash) of transfers under way
        self._contents: dict[str, Payload] = {}  # parts that may be asked for again
        self._users: dict[str, set[tuple[str, int]]] = {}  # part -> (job, index) that need it; index -1: the job itself
        self._introduced: set[str] = set()  # jobs whose own parts are in the tables
        self._own: dict[str, dict[int, set[str]]] = {}  # job -> index -> parts that this task needs besides the job's

    def renewed(self, credentials: Credentials) -> None:
        """Show another certificate, of the same keys, from now on."""
        self._credentials = credentials

    def send(
        self,
        link: NodeLink,
        job: Job,
        dispatch: Dispatch,
        history: Mapping[int, list[Attempt]],
        stream: tuple[int, int] | None = None,
    ) -> None:
        """Send one batch, and before it what it needs. `stream`: as in `wire.Exec`."""
        payloads = job.payloads(dispatch.runs)
        large, arguments = self._part_large(dispatch, payloads)
        if job.id not in self._introduced:
            self._introduced.add(job.id)
            for hash_, data in job.parts.items():
                self._use(hash_, data, job.id, -1)
        for index, hash_ in large.items():
            self._use(hash_, arguments[hash_], job.id, index)
        for index, inputs in job.input_parts(dispatch.runs).items():
            for hash_, payload in inputs.items():
                arguments[hash_] = payload
                self._use(hash_, payload, job.id, index)
        parts = {**job.parts, **arguments} if arguments else job.parts
        for hash_ in parts.keys() - link.given:
            self._give(link, hash_, parts[hash_])
        options = job.spec.options
        message = wire.Exec(
            batch=dispatch.batch,
            job=job.id,
            job_name=job.spec.name,
            runs=dispatch.runs,
            attempt=dispatch.attempt,
            fn=job.fn_hash,
            env=job.env_hash,
            parts=list(parts),
            needs=job.needs,
            large=large,
            fresh=options.fresh,
            timeout_s=options.timeout,
            seed=options.seed,
            parent=job.parent,
            history=dict(history),
            inputs=job.inputs(dispatch.runs),
            stream=stream,
            gang=job.spec.in_place is not None,
            priority=options.priority,
            stays=job.blocks(dispatch.runs) if job.spec.stays else None,
            chosen=dispatch.chosen,
        )
        link.send(message, _encode(payloads))

    def missing(self, link: NodeLink, hashes: list[str]) -> None:
        """The node lacks these."""
        for hash_ in hashes:
            data = self._contents.get(hash_)
            if data is not None:
                link.given.discard(hash_)
                self._give(link, hash_, data)

    def settled(self, job: Job, runs: Runs) -> None:
        """These tasks are final: their large arguments need not be kept."""
        own = self._own.get(job.id)
        if own:
            for index in indices_of(runs):
                for hash_ in own.pop(index, ()):
                    self._drop(hash_, job.id, index)

    def forget(self, job: Job) -> None:
        """A job is over: its parts need not be sent again."""
        self._introduced.discard(job.id)
        self._own.pop(job.id, None)
        for hash_ in job.parts:
            self._drop(hash_, job.id, -1)

    def _use(self, hash_: str, data: Payload, job: str, index: int) -> None:
        self._contents[hash_] = data
        self._users.setdefault(hash_, set()).add((job, index))
        if index >= 0:
            self._own.setdefault(job, {}).setdefault(index, set()).add(hash_)

    def _drop(self, hash_: str, job: str, index: int) -> None:
        users = self._users.get(hash_)
        if users is not None:
            users.discard((job, index))
            if not users:
                del self._users[hash_]
                self._contents.pop(hash_, None)

    def _part_large(self, dispatch: Dispatch, payloads: list[bytes]) -> tuple[dict[int, str], dict[str, Payload]]:
        """Take large payloads out of the list; they travel as parts."""
        total = sum(map(len, payloads))
        if total < BULK_BYTES:
            return {}, {}
        limit = OVERSIZE_PART_BYTES if total > OVERSIZE_BYTES else BULK_BYTES
        large: dict[int, str] = {}
        parts: dict[str, Payload] = {}
        for position, index in enumerate(indices_of(dispatch.runs)):
            data = payloads[position]
            if len(data) >= limit:
                large[index] = part_hash(data)
                parts[large[index]] = data
                payloads[position] = b""
        return large, parts

    def _give(self, link: NodeLink, hash_: str, data: Payload) -> None:
        if hash_ in link.given or (link.address, hash_) in self._bulk:
            return
        if len(data) < BULK_BYTES:
            if link.send(wire.PutPart(hash_), data):
                link.given.add(hash_)
            return
        task = asyncio.get_running_loop().create_task(self._put(link, hash_, data), name=f"put-{hash_[:8]}")
        self._bulk[link.address, hash_] = task

    async def _put(self, link: NodeLink, hash_: str, data: Payload) -> None:
        try:
            await asyncio.to_thread(put_part, link.host, link.port, self._credentials, hash_, data)
            link.given.add(hash_)
        except KosError as error:  # the node asks again, or is lost and the work goes elsewhere
            sys.stderr.write(f"kos: a payload could not be sent to {link.address}: {error.message}\n")
        finally:
            del self._bulk[link.address, hash_]
