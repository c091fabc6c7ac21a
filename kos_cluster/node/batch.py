"""One batch that a node has taken: what its owner sent, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from kos_cluster.core.batching import TASKS_LIMIT
from kos_cluster.core.gang.stopandwait import StopAndWait
from kos_cluster.core.queue import BatchSpec, Key
from kos_cluster.core.records import are_runs, count_of, indices_of, runs_of
from kos_cluster.errors import ProtocolError
from kos_cluster.net import local, wire
from kos_cluster.net.scoreboard import Glance
from kos_cluster.node.history import BatchRecord
from kos_cluster.node.owners import OwnerState

_payload_list = msgspec.msgpack.Decoder(list[bytes])


@dataclass(slots=True)
class Batch:
    """One batch that is held, queued or running here."""

    owner: OwnerState
    message: wire.Exec
    payload: bytes
    record: BatchRecord
    order: list[int]  # task indices as they are run, without those given back
    left: set[int]  # without an outcome yet
    missing: set[str]
    told_started: bool = False
    worker: int | None = None
    says: StopAndWait | None = None  # of a rank: what it tells its owner
    waits_for_tasks: bool = False  # that it has submitted itself
    yielded: int = 0  # items of its one task, if that yields; those of earlier attempts included
    wanted: int = 1  # up to which it may yield
    seen: Glance | None = None  # of its worker's scoreboard, at the last look
    told: set[int] = field(default_factory=set)  # whose outcomes were told before their worker sent them

    @property
    def waits(self) -> bool:
        """Whether its slots can serve others meanwhile."""
        return self.waits_for_tasks or self.yielded >= self.wanted

    def not_told(self, message: local.Done, payload: bytes) -> tuple[local.Done, bytes]:
        """What its worker has sent, without the results that were told before. Raises ProtocolError, DecodeError."""
        if not are_runs(message.runs, TASKS_LIMIT):
            raise ProtocolError("A worker sent outcomes of impossible tasks.")
        if not self.told:
            return message, payload
        outcomes = _payload_list.decode(payload)
        if len(outcomes) != count_of(message.runs):
            raise ProtocolError(f"A worker sent {len(outcomes)} outcomes of {count_of(message.runs)} tasks.")
        sent = dict(zip(indices_of(message.runs), outcomes, strict=True))
        fresh = {index: data for index, data in sent.items() if index not in self.told}
        self.told.difference_update(sent)
        return msgspec.structs.replace(message, runs=runs_of(fresh)), msgspec.msgpack.encode(list(fresh.values()))


def spec_of(key: Key, message: wire.Exec, size_bytes: int) -> BatchSpec:
    """What the queue needs to know of a batch whose payload has this size."""
    needs = message.needs
    return BatchSpec(
        key,
        message.job,
        message.env,
        needs.cpus,
        message.fresh,
        message.timeout_s,
        needs.memory_bytes,
        needs.gpus,
        needs.resources,
        priority=message.priority,
        size_bytes=size_bytes,
    )
