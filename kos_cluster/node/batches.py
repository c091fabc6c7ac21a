"""The batches on this node, from `Exec` to released `Result`: carries out what `core.queue` decides.

Rules. A batch is told to its owner as it goes: missing parts, refusal, start (if it lasts), outcomes, loss. Outcomes
and losses stay in the owner's outbox until it releases them. The daemon never unpickles a payload.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from kos_cluster.core import queue
from kos_cluster.core.capacity import Capacity, gib
from kos_cluster.core.gang.slots import (
    Answer,
    SlotsDenied,
    SlotsGranted,
    SlotsReleased,
    SlotsWanted,
    SlotsWithdrawn,
    reservation_key,
)
from kos_cluster.core.gang.stopandwait import StopAndWait
from kos_cluster.core.queue import Key, NodeQueue, Owner
from kos_cluster.core.records import END_OF_CAUSE, AttemptEnd, Cause, Load, Runs, count_of, indices_of, runs_of
from kos_cluster.net import local, scoreboard, wire
from kos_cluster.net.gangs import RankReady
from kos_cluster.net.streams import Item, ItemsWanted
from kos_cluster.net.takingback import Returned
from kos_cluster.net.transport import Payload
from kos_cluster.node.batch import Batch, spec_of
from kos_cluster.node.history import CHOSEN_LIMIT_CHARACTERS, BatchRecord, History
from kos_cluster.node.owners import Owners, OwnerState, Returning, files_of
from kos_cluster.node.parts import Parts
from kos_cluster.node.workers import Last, Workers

log = logging.getLogger(__name__)

STARTED_AFTER_S = 0.05  # a batch that runs longer is reported as started
MISSING_AGAIN_S = 2.0  # after which parts that have not come are asked for again
ENDED_LIMIT = 4096  # stopped attempts that are remembered, so that nothing of theirs starts any more
OUTPUT_PAUSE_S = 0.05  # how long a worker's output waits when its owner cannot take more
LOG_TAIL_LINES = 10
ITEMS_WAIT = "it waits until more of what it yields is taken"


class Send(Protocol):
    """Queue a message, and perhaps a payload, for an owner. False when it is not taken."""

    def __call__(self, owner: OwnerState, message: wire.Message, payload: Payload = b"") -> bool: ...


# These, which results refer to, are the owner's from now on, and not their writers'; None: nobody's.
KeepBlocks = Callable[[Owner | None, Sequence[str]], None]


class Batches:
    """The running work of one node; also the listener of its workers."""

    def __init__(
        self,
        node: str,
        slots: int,
        capacity: Capacity,
        parts: Parts,
        owners: Owners,
        history: History,
        send: Send,
        reserved: Callable[[Answer], None],
        keep_blocks: KeepBlocks,
    ) -> None:
        self._node = node
        self._tell_reserved = reserved
        self._parts = parts
        self._owners = owners
        self._history = history
        self._send = send
        self._keep_blocks = keep_blocks
        self._queue = NodeQueue(slots, capacity)
        self._batches: dict[Key, Batch] = {}
        self._by_part: dict[str, set[Key]] = {}
        self._workers: Workers | None = None
        self._ended_parents: deque[str] = deque(maxlen=ENDED_LIMIT)
        self._unsent: dict[int, tuple[OwnerState, wire.Output, bytes]] = {}

    def loaded(self, load: Load) -> Load:
        """A load of this machine with what its work takes now."""
        account = self._queue.account
        return msgspec.structs.replace(
            load,
            running=self._queue.running,
            queued=self._queue.queued,
            memory_declared_bytes=account.memory_bytes,
            gpus_in_use=account.gpus_in_use,
            resources_in_use=tuple(account.resources.values()),
            over_memory=self._queue.pressed,
        )

    @property
    def busy(self) -> bool:
        """Whether `tick` has anything to look at."""
        return bool(self._batches) or self._queue.reserves

    def start(self, workers: Workers) -> None:
        """Begin, with workers whose fork server has been started."""
        self._workers = workers
        self._carry_out(self._queue.start())

    # ---- from owners

    def execute(self, owner: OwnerState, message: wire.Exec, payload: bytes) -> None:
        """Take a batch; the same one again changes nothing."""
        key = (owner.owner, message.batch)
        if key in self._batches or message.batch in owner.kept_batches:
            return
        owner.submitted(message.job)
        if owner.full:
            self._send(owner, wire.Refused(message.batch, "results of this owner wait to be taken"))
            return
        missing = set(self._parts.missing(message.parts))
        record = BatchRecord(
            message.job,
            message.job_name,
            message.runs,
            message.attempt,
            time.time(),
            earlier=message.history,
            chosen=message.chosen[:CHOSEN_LIMIT_CHARACTERS],
        )
        record.received_bytes = len(payload)
        order = list(indices_of(message.runs))
        batch = self._batches[key] = Batch(owner, message, payload, record, order, set(order), missing)
        if message.stream is not None:  # what its owner has already need not be yielded to anybody
            batch.yielded, batch.wanted = message.stream
        self._parts.pin(message.parts)
        for hash_ in missing:
            self._by_part.setdefault(hash_, set()).add(key)
        spec = spec_of(key, message, len(payload))
        if message.gang:
            spec = msgspec.structs.replace(spec, gang=reservation_key(owner.peer.id, message.job))
        self._apply(queue.Arrived(spec, held=bool(missing)))
        if message.parent and message.parent in self._ended_parents:
            self._apply(queue.CancelBatches((key,)))
        if key in self._batches:
            self._history.arrived(record, message.inputs)
            if missing:
                self._send(owner, wire.Missing(message.batch, sorted(missing)))

    def part_arrived(self, hash_: str) -> None:
        """A part is here: what waited for it alone may start."""
        size_bytes = self._parts.size_bytes(hash_)
        for key in self._by_part.pop(hash_, ()):
            batch = self._batches.get(key)
            if batch is not None:
                batch.missing.discard(hash_)
                batch.record.received_bytes += size_bytes
                size_bytes = 0  # it came once, whoever waits for it
                if not batch.missing:
                    self._apply(queue.PartsComplete(key))

    def ask_again(self, owner: OwnerState) -> None:
        """Messages may get lost: name again the parts that are not there a while after their batch, and say again what
        ranks wait an answer for."""
        before = time.time() - MISSING_AGAIN_S
        for batch in self._batches.values():
            if batch.missing and batch.owner is owner and batch.record.arrived_s < before:
                self._send(owner, wire.Missing(batch.message.batch, sorted(batch.missing)))
            if batch.says is not None and batch.owner is owner and batch.says.again(time.monotonic()):
                self._say(batch, batch.says)

    def reserve(self, event: SlotsWanted | SlotsReleased | SlotsWithdrawn) -> None:
        """Hold slots for a gang, or let them go; what becomes of it is told to `reserved`."""
        self._apply(event)

    def table(self, owner: OwnerState, number: int, serial: int | None, payload: bytes) -> None:
        """All ranks of a gang are in place: one that is here may begin. Or another answer that it waits for."""
        batch = self._batches.get((owner.owner, number))
        if batch is None or batch.says is None or batch.worker is None or self._workers is None:
            return
        if batch.says.answered(serial, time.monotonic()):
            self._workers.send(batch.worker, local.RankTable(number), payload)

    def _say(self, batch: Batch, says: StopAndWait) -> None:
        message = batch.message
        self._send(batch.owner, RankReady(message.batch, message.job, batch.order[0], says.serial), says.said)

    def cancel(self, owner: OwnerState, batches: Sequence[int]) -> None:
        self._apply(queue.CancelBatches(tuple((owner.owner, number) for number in batches)))

    def take_back(self, owner: OwnerState, batches: Sequence[int]) -> None:
        """Give back what has not begun of these, unless it is about to."""
        self._apply(queue.TakeBack(tuple((owner.owner, number) for number in batches)))

    def owner_ended(self, owner: OwnerState) -> None:
        """Nobody wants this owner's work any more."""
        self._apply(queue.OwnerGone(owner.owner))
        for (message, _), _ in owner.outbox.values():
            self._discard(message)

    def attempts_ended(self, identity: str, job: str, runs: Runs, attempt: int) -> None:
        """Stop what these attempts of this identity's job had submitted, and what they may still submit."""
        ended = {f"{identity}/{job}.{index}#{attempt}" for index in indices_of(runs)}
        self._ended_parents.extend(ended)
        keys = tuple(key for key, batch in self._batches.items() if batch.message.parent in ended)
        if keys:
            self._apply(queue.CancelBatches(keys))

    def waits(self, task: str, attempt: int, waiting: bool) -> None:
        """A task here waits for tasks that it submitted, or goes on: its slots are lent meanwhile."""
        job, _, index = task.partition(".")
        for key, batch in self._batches.items():
            message = batch.message
            if (
                message.job == job
                and message.attempt == attempt
                and index.isascii()
                and index.isdigit()
                and int(index) in batch.left
            ):
                batch.waits_for_tasks = waiting
                self._apply(queue.TaskWaits(key, batch.waits))
                return

    def items_wanted(self, owner: OwnerState, wanted: ItemsWanted) -> None:
        """A task that yields may go on for a while."""
        key = (owner.owner, wanted.batch)
        batch = self._batches.get(key)
        if batch is None or wanted.until <= batch.wanted:
            return
        batch.wanted = wanted.until
        worker = self._queue.worker_of(key)
        if worker is not None and self._workers is not None:
            self._workers.send(worker, local.ItemsWanted(wanted.batch, wanted.until))
        self._told_to_wait(key, batch)

    def unknown(self, owner: OwnerState, outstanding: Sequence[int]) -> list[int]:
        """Those of an owner's batches that are neither here nor waiting to be released."""
        kept = owner.kept_batches
        return [n for n in outstanding if n not in kept and (owner.owner, n) not in self._batches]

    def others_wait(self, owner: OwnerState) -> bool:
        """Whether work of others than this owner waits here."""
        return self._queue.others_wait(owner.owner)

    def claimed(self, owner: OwnerState, outstanding: Sequence[int]) -> None:
        """Stop those of an owner's batches that it does not hold to be here: its wish to cancel them got lost."""
        wanted = set(outstanding)
        keys = tuple(
            key
            for key, batch in self._batches.items()
            if batch.owner is owner and batch.left and batch.message.batch not in wanted
        )
        if keys:
            self._apply(queue.CancelBatches(keys))

    def release(self, owner: OwnerState, serials: list[int]) -> None:
        for message in owner.release(serials):
            self._discard(message)

    def result_path(self, identity: str, name: str) -> Path | None:
        """The file of a large outcome, if it is one of this identity's."""
        for owner in self._owners:
            if owner.peer.id != identity:
                continue
            for (message, _), _ in owner.outbox.values():
                if name in (each for each, _ in files_of(message)):
                    return self._spool / name
        return None

    def stop(self) -> None:
        """The node stops: give everything back."""
        self._apply(queue.Stopping())

    def tick(self, now: float) -> None:
        """Report what has started, and what ended before a task that lasts; stop what is late."""
        self._carry_out(self._queue.tick(now))
        for key, batch in list(self._batches.items()):
            if batch.message.stream is not None and batch.record.started_s is not None:
                self._told_to_wait(key, batch)  # a second attempt may have nothing to yield before it must wait
        self._tell_kept()
        started: dict[int, tuple[OwnerState, list[int]]] = {}
        wall = time.time()
        for batch in self._batches.values():
            begun = batch.record.started_s
            if begun is not None and not batch.told_started and wall - begun >= STARTED_AFTER_S:
                batch.told_started = True
                started.setdefault(id(batch.owner), (batch.owner, []))[1].append(batch.message.batch)
        for owner, numbers in started.values():
            self._send(owner, wire.Started(numbers))

    def _tell_kept(self) -> None:
        """Take the results off the scoreboard of a worker that has been at one task since the last look."""
        assert self._workers is not None
        for batch in self._batches.values():
            if batch.worker is None or len(batch.order) == 1:
                continue
            seen = self._workers.glance(batch.worker)
            stays, batch.seen = seen == batch.seen, seen
            if stays and seen.kept_bytes and not batch.told:
                self._results_kept(batch, *self._workers.kept(batch.worker, seen))

    def watch_memory(self) -> None:
        """End the workers that hold more than their batch has declared."""
        assert self._workers is not None
        for worker, key in self._queue.bounded():
            declared_bytes = self._batches[key].message.needs.memory_bytes
            used_bytes = self._workers.memory_bytes(worker, declared_bytes)
            if used_bytes > declared_bytes:
                detail = f"it held {gib(used_bytes)}, and had declared {gib(declared_bytes)}"
                self._apply(queue.OverMemory(worker, detail))

    def pressed(self, why: str) -> None:
        """Take no more work, for this reason; work again when it is empty."""
        self._apply(queue.Pressed(why))

    # ---- from workers (workers.Listener)

    def worker_ready(self, worker: int) -> None:
        self._apply(queue.WorkerReady(worker))

    def worker_said(self, worker: int, message: local.FromTask, payload: bytes) -> None:
        key = self._queue.batch_of(worker)
        batch = self._batches.get(key) if key is not None else None
        if key is None or batch is None or message.batch != batch.message.batch:
            log.warning("Worker %d spoke of batch %d, which it does not hold.", worker, message.batch)
            return
        if isinstance(message, local.Display):
            self._displayed(worker, batch, message, payload)
        elif isinstance(message, local.Item):
            self._yielded(key, batch, message, payload)
        elif isinstance(message, local.RankReady):
            batch.says = batch.says or StopAndWait()
            batch.says.say(payload, time.monotonic())
            self._say(batch, batch.says)
        else:
            self._outcomes(worker, key, batch, message, payload)

    def worker_wrote(self, worker: int, stream: str, data: bytes) -> None:
        key = self._queue.batch_of(worker)
        batch = self._batches.get(key) if key is not None else None
        if batch is None:
            log.info("worker %d wrote outside of a task: %s", worker, data.decode(errors="replace").rstrip())
            return
        message = batch.message
        index = self._current(worker, batch)
        self._history.wrote(f"{message.job}.{index}", data)
        output = wire.Output(message.batch, message.job, index, message.attempt, stream)
        if worker in self._unsent or not self._send(batch.owner, output, data):
            self._hold_output(worker, batch.owner, output, data)

    def worker_exited(self, worker: int, detail: str, out_of_memory: bool, last: Last) -> None:
        self._unsent.pop(worker, None)
        key = self._queue.batch_of(worker)
        if key is not None and last.kept:
            self._results_kept(self._batches[key], last.kept, last.elapsed_s)
        effects = self._queue.handle(queue.WorkerExited(worker, out_of_memory, detail), time.monotonic())
        for effect in effects:
            if isinstance(effect, queue.Lose) and effect.worker == worker:
                self._lost(effect, last.at)
            else:
                self._carry_out([effect])

    # ---- effects

    def _apply(self, event: queue.Event) -> None:
        self._carry_out(self._queue.handle(event, time.monotonic()))

    def _carry_out(self, effects: Sequence[queue.Effect]) -> None:
        assert self._workers is not None
        for effect in effects:
            match effect:
                case queue.Assign(worker, key, gpus):
                    self._assign(worker, self._batches[key], gpus)
                case queue.Fork(worker):
                    self._workers.fork(worker)
                case queue.Interrupt(worker):
                    self._workers.signal(worker, signal.SIGINT)
                case queue.Kill(worker):
                    self._workers.signal(worker, signal.SIGKILL)
                case queue.Retire(worker):
                    self._workers.send(worker, local.Stop())
                case queue.Refuse(key, reason, stopping):
                    batch = self._forget(key)
                    self._send(batch.owner, wire.Refused(batch.message.batch, reason, stopping))
                case queue.GiveBack(key):
                    batch = self._forget(key)
                    batch.record.ended_s, batch.record.done = time.time(), True
                    self._tell_returned(batch, batch.order)
                case queue.Withhold(worker, key):
                    batch = self._batches[key]
                    tasks = self._workers.withhold(worker)
                    if tasks:
                        self._tell_returned(batch, batch.order[-tasks:])
                        del batch.order[-tasks:]
                case queue.Lose():
                    self._lost(effect, None)
                case SlotsGranted() | SlotsDenied():
                    self._tell_reserved(effect)

    def _assign(self, worker: int, batch: Batch, gpus: tuple[str, ...]) -> None:
        assert self._workers is not None
        message = batch.message
        batch.worker = worker
        for hash_ in self._workers.lacks(worker, message.parts):
            content = self._parts.get(hash_)
            if isinstance(content, bytes):
                self._workers.give(worker, local.Part(hash_), content)
            else:
                self._workers.give(worker, local.Part(hash_, str(content)), None)
        batch.record.started_s = time.time()
        run = local.Run(
            message.batch,
            message.job,
            message.runs,
            message.attempt,
            message.fn,
            message.env,
            self._node,
            batch.owner.peer.id,
            message.large,
            message.seed,
            ",".join(gpus),
            None if message.stream is None else (message.stream[0], batch.wanted),
            message.stays,
        )
        self._workers.let_claim(worker, len(batch.order) - 1)
        self._workers.send(worker, run, batch.payload)

    def _outcomes(self, worker: int, key: Key, batch: Batch, message: local.Done, payload: bytes) -> None:
        """Pass outcomes on; a task that was interrupted because it is being stopped is told as lost, not as failed."""
        message, payload = batch.not_told(message, payload)
        batch.left.difference_update(indices_of(message.runs))
        record = batch.record
        record.returned_bytes += len(payload) + sum(size_bytes for _, size_bytes in message.large.values())
        record.peak_memory_bytes = max(record.peak_memory_bytes, message.peak_memory_bytes)
        cause = self._queue.stopping(key)
        record.ends.update(dict.fromkeys(message.failed, AttemptEnd.FAILED))
        record.ends.update(dict.fromkeys(message.lost, AttemptEnd.INPUT_LOST))
        self._history.raised(record.job, message.causes)
        if cause is not None and message.failed:
            self._report_stopped(batch, message, cause)
            self._keep_blocks(None, message.blocks)
        elif message.runs or message.last:
            owner = batch.owner
            result = wire.Result(
                batch.message.batch,
                owner.next_serial,
                message.runs,
                message.failed,
                message.large,
                message.elapsed_s,
                message.last,
                message.items,
                message.blocks,
                message.stayed,
                message.lost,
            )
            if message.blocks:
                self._keep_blocks(owner.owner, message.blocks)
            self._deliver(owner, result, payload)
        if message.last:
            record.done, record.ended_s = True, time.time()
            self._forget(key)
            self._apply(queue.BatchDone(worker, message.retire))

    def _results_kept(self, batch: Batch, kept: Sequence[scoreboard.Outcome], elapsed_s: float) -> None:
        """Pass on what a worker has not sent; it will send it once more, if it lives."""
        found = {batch.order[each.position]: each.data for each in kept if each.position < len(batch.order)}
        fresh = [index for index in sorted(found) if index in batch.left]
        if not fresh:
            return
        batch.left.difference_update(fresh)
        batch.told.update(fresh)
        payload = msgspec.msgpack.encode([found[index] for index in fresh])
        batch.record.returned_bytes += len(payload)
        number, owner = batch.message.batch, batch.owner
        result = wire.Result(number, owner.next_serial, runs_of(fresh), [], {}, elapsed_s, False)
        self._deliver(owner, result, payload)

    def _report_stopped(self, batch: Batch, message: local.Done, cause: Cause) -> None:
        stopped = runs_of(sorted(set(indices_of(message.runs)) | batch.left))
        self._tell_lost(batch, stopped, [], cause, "")
        batch.left.clear()
        batch.record.ends.update(dict.fromkeys(indices_of(stopped), END_OF_CAUSE[cause]))

    def _yielded(self, key: Key, batch: Batch, message: local.Item, payload: bytes) -> None:
        """Pass an item on. When its task has to wait then, its slots can serve others: a taker may wait for those."""
        owner = batch.owner
        batch.record.returned_bytes += len(payload) + (message.large[1] if message.large else 0)
        batch.yielded = max(batch.yielded, message.position + 1)
        item = Item(batch.message.batch, owner.next_serial, message.position, message.large)
        self._deliver(owner, item, payload)
        self._told_to_wait(key, batch)

    def _told_to_wait(self, key: Key, batch: Batch) -> None:
        batch.record.waits = ITEMS_WAIT if batch.yielded >= batch.wanted else ""
        self._apply(queue.TaskWaits(key, batch.waits))

    def _displayed(self, worker: int, batch: Batch, message: local.Display, payload: bytes) -> None:
        assert self._workers is not None
        sent = batch.message
        self._send(batch.owner, wire.Displays(sent.batch, sent.job, message.index, sent.attempt), payload)
        self._workers.send(worker, local.Displayed())

    def _lost(self, effect: queue.Lose, at: scoreboard.Glance | None) -> None:
        batch = self._forget(effect.key)
        left = batch.left
        if at is None:
            ran: Runs = []
        else:
            # One that died before its first task has failed at that task: else it would be tried for ever.
            ran = runs_of(i for i in batch.order[: at.position + 1] if i in left) or runs_of(sorted(left)[:1])
        touched = set(indices_of(ran))
        untouched = runs_of(i for i in batch.order if i in left and i not in touched)
        record = batch.record
        record.ended_s, record.cause, record.done = time.time(), effect.detail, True
        record.ends.update(dict.fromkeys(touched, END_OF_CAUSE[effect.cause]))
        record.ends.update(dict.fromkeys(indices_of(untouched), AttemptEnd.RETURNED))
        self._tell_lost(batch, ran, untouched, effect.cause, effect.detail)

    def _tell_lost(self, batch: Batch, ran: Runs, untouched: Runs, cause: Cause, detail: str) -> None:
        message, owner = batch.message, batch.owner
        first = ran[0][0] if ran else (untouched[0][0] if untouched else 0)
        tail = self._history.tail(f"{message.job}.{first}", LOG_TAIL_LINES) if count_of(ran) else ""
        lost = wire.Lost(message.batch, owner.next_serial, ran, untouched, cause, detail, tail)
        self._deliver(owner, lost, b"")

    def _tell_returned(self, batch: Batch, indices: Sequence[int]) -> None:
        """These have not begun, and will not be run here."""
        batch.left.difference_update(indices)
        batch.record.ends.update(dict.fromkeys(indices, AttemptEnd.RETURNED))
        owner = batch.owner
        self._deliver(owner, Returned(batch.message.batch, owner.next_serial, runs_of(indices)), b"")

    def _deliver(self, owner: OwnerState, message: Returning, payload: bytes) -> None:
        """Send and keep until released; what an owner that is gone would have got is removed."""
        if self._owners.get(owner.owner) is not owner:
            self._discard(message)
            return
        owner.next_serial += 1
        owner.keep(message, payload, time.monotonic())
        self._send(owner, message, payload)

    def _discard(self, message: Returning) -> None:
        for name, _ in files_of(message):
            (self._spool / name).unlink(missing_ok=True)

    @property
    def _spool(self) -> Path:
        assert self._workers is not None
        return self._workers.spool

    def _forget(self, key: Key) -> Batch:
        batch = self._batches.pop(key)
        self._parts.unpin(batch.message.parts)
        for hash_ in batch.missing:
            waiting = self._by_part.get(hash_)
            if waiting is not None:
                waiting.discard(key)
                if not waiting:
                    del self._by_part[hash_]
        return batch

    def _current(self, worker: int, batch: Batch) -> int:
        """The task that a worker is at: exact for batches of one, the latest started otherwise."""
        assert self._workers is not None
        at = self._workers.glance(worker)
        return batch.order[at.position if at.position < len(batch.order) else 0]

    # ---- output that the owner cannot take yet

    def _hold_output(self, worker: int, owner: OwnerState, output: wire.Output, data: bytes) -> None:
        """Keep one piece, and let the worker wait until the owner takes it."""
        assert self._workers is not None
        held = self._unsent.get(worker)
        self._unsent[worker] = (owner, output, held[2] + data if held else data)
        self._workers.pause_output(worker, OUTPUT_PAUSE_S)

    def retry_output(self) -> None:
        """Try again to hand over held output."""
        for worker, (owner, output, data) in list(self._unsent.items()):
            if self._owners.get(owner.owner) is not owner or self._send(owner, output, data):
                del self._unsent[worker]
