"""A node's queue: batches in fair turns, slots, and the workers that serve them.

Theory of operation. Batches wait in one line per (user, job); the lines take turns (`lines`), so that a job of a
million tasks does not starve another's single one. A batch leaves its line when slots are free and goes to an idle
worker that is set up for its environment, to a blank one, or to a new one. A task that waits for other tasks lends its
slots meanwhile, so that tasks may submit tasks without deadlock; when it goes on, the node is over its slots for a
while. Memory, GPUs and named resources are accounted beside the slots (`capacity`). A worker that was given GPUs serves
no other batch, and they are free again when its process has ended: it is the process that holds a GPU's memory. What a
gang has reserved (`core.gang.slots`) counts as in use, and only its ranks get it; while a reservation waits, no other
batch is started.

    batch     event                      next
    -         Arrived, parts missing     held
    -, held   parts complete             queued
    queued    slots free, worker found   running
    running   BatchDone                  gone
    running   WorkerExited               gone, the owner is told (Lose)
    queued    Cancel, OwnerGone          gone
    running   Cancel, OwnerGone, late    stopping: interrupted, killed `GRACE_S` later
    running   OverMemory                 stopping: killed at once
    -         Arrived, while pressed     refused
    queued    Pressed                    refused, for its owner to place elsewhere
    queued    TakeBack                   gone, given back
    running   TakeBack                   running, what has not begun of it is given back

Rules: workers are numbered by this machine; the runtime forks and ends them as told. A worker keeps one environment for
life. Limits are named below; what is over them is refused, never dropped, so an owner's tasks take its own memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kos_cluster.core.capacity import SLOTS_ALONE, Account, Capacity, fault_of, gib
from kos_cluster.core.gang.slots import ReservedSlots, SlotsDenied, SlotsReleased, SlotsWanted, SlotsWithdrawn
from kos_cluster.core.lines import Lines, Waiter
from kos_cluster.core.queueevents import (
    Arrived,
    Assign,
    BatchDone,
    BatchSpec,
    CancelBatches,
    Effect,
    Event,
    Fork,
    GiveBack,
    Interrupt,
    Key,
    Kill,
    Lose,
    OverMemory,
    Owner,
    OwnerGone,
    PartsComplete,
    Pressed,
    Refuse,
    Retire,
    Stopping,
    TakeBack,
    TaskWaits,
    Withhold,
    WorkerExited,
    WorkerReady,
)
from kos_cluster.core.records import Cause

__all__ = [
    "Arrived",
    "Assign",
    "BatchDone",
    "BatchSpec",
    "CancelBatches",
    "Effect",
    "Event",
    "Fork",
    "GiveBack",
    "Interrupt",
    "Key",
    "Kill",
    "Lose",
    "NodeQueue",
    "OverMemory",
    "Owner",
    "OwnerGone",
    "PartsComplete",
    "Pressed",
    "Refuse",
    "Retire",
    "Stopping",
    "TakeBack",
    "TaskWaits",
    "Withhold",
    "WorkerExited",
    "WorkerReady",
]

QUEUE_LIMIT = 4096  # batches held, queued and running on one node
QUEUE_LIMIT_BYTES = 512 << 20  # of their payloads
OWNER_LIMIT = 256  # of them of one owner
OWNER_LIMIT_BYTES = 128 << 20  # of its payloads
WORKERS_LIMIT = 128  # workers of one node, those whose slots are lent included
GRACE_S = 0.4  # between interrupting a task and killing its worker
RETIRE_S = 5.0  # for a worker with GPUs to end by itself


@dataclass(slots=True, eq=False)
class _Entry(Waiter):
    spec: BatchSpec
    worker: int | None = None
    holds: bool = False  # what it takes is counted, be its slots lent or not
    gpus: tuple[str, ...] = ()  # that it holds, and its worker then
    waits: bool = False
    deadline_s: float | None = None
    stop: Cause | None = None  # why it is being stopped
    stop_detail: str = ""
    kill_at_s: float | None = None


@dataclass(slots=True)
class _Owned:
    """What is here of one owner."""

    keys: set[Key]
    size_bytes: int = 0


@dataclass(slots=True)
class _Worker:
    number: int
    ready: bool = False
    env: str | None = None  # None: blank
    entry: _Entry | None = None
    ending: bool = False
    gpus: tuple[str, ...] = ()  # that it was given, for life
    kill_at_s: float | None = None  # when it has not ended by then


class NodeQueue:
    """The machine of one node with `slots` slots, and what else it has to give."""

    def __init__(self, slots: int, capacity: Capacity = SLOTS_ALONE) -> None:
        self.slots = slots
        self._account = Account(slots, capacity)
        self._entries: dict[Key, _Entry] = {}
        self._by_owner: dict[Owner, _Owned] = {}
        self._size_bytes = 0  # of all payloads
        self._lines: Lines[_Entry] = Lines()
        self._ranks: deque[_Entry] = deque()  # that wait for a worker alone
        self._workers: dict[int, _Worker] = {}
        self._next_worker = 1
        self._pressed = ""  # why no more work is taken
        self._reserved = ReservedSlots(self._account)
        self._timed: dict[Key, _Entry] = {}  # entries with a deadline or a pending kill
        self._stopping = False

    def start(self) -> list[Effect]:
        """Fork the first blank workers, so that the first task finds one."""
        return [self._fork()[1] for _ in range(self.slots)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case BatchDone(worker, retire):
                self._done(worker, retire, now, effects)
            case Arrived(batch, held):
                self._arrive(batch, held, effects)
            case PartsComplete(key):
                if key in self._entries:
                    self._wait(self._entries[key])
            case WorkerReady(worker):
                self._ready(worker, now, effects)
            case WorkerExited():
                self._exited(event, now, effects)
            case CancelBatches(keys):
                for key in keys:
                    self._stop(key, Cause.CANCELLED, now, effects)
            case TakeBack(keys):
                for key in keys:
                    self._give_back(key, now, effects)
            case OwnerGone(owner):
                for key in sorted(self._by_owner[owner].keys if owner in self._by_owner else ()):
                    self._stop(key, Cause.CANCELLED, now, effects)
                effects += self._reserved.owner_ended(owner)
            case TaskWaits(key, waiting):
                self._task_waits(key, waiting, now)
            case OverMemory(worker, detail):
                self._over_memory(worker, detail, effects)
            case Pressed(why):
                self._press(why, now, effects)
            case SlotsWanted() if self._stopping or self._pressed:
                effects.append(SlotsDenied(event.txn))
            case SlotsWanted():
                effects += self._reserved.want(event, now)
            case SlotsReleased(txn):
                effects += self._reserved.release(txn)
            case SlotsWithdrawn(gang):
                effects += self._reserved.withdraw(gang)
            case Stopping():
                self._stopping = True
                for key in sorted(self._entries):
                    self._stop(key, Cause.STOPPING, now, effects)
        self._schedule(now, effects)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Stop what ran out of time, kill what did not stop, end reservations, charge what runs."""
        effects: list[Effect] = []
        for worker in self._workers.values():
            if worker.kill_at_s is not None and now >= worker.kill_at_s:
                worker.kill_at_s = None
                effects.append(Kill(worker.number))
        if self._reserved:
            effects += self._reserved.tick(now)
        if self._lines:
            self._lines.charge_running((e for w in self._workers.values() if (e := w.entry) and not e.spec.gang), now)
        if self._reserved or self._lines:
            self._schedule(now, effects)
        for key, entry in list(self._timed.items()):
            if entry.kill_at_s is not None and now >= entry.kill_at_s and entry.worker is not None:
                entry.kill_at_s = None
                effects.append(Kill(entry.worker))
            elif entry.deadline_s is not None and now >= entry.deadline_s:
                entry.deadline_s = None
                self._stop(key, Cause.TIMEOUT, now, effects)
        return effects

    # ---- what others may ask

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._account.slots_in_use

    @property
    def reserves(self) -> bool:
        """Whether gangs have reserved slots here, or wait for some."""
        return bool(self._reserved)

    @property
    def account(self) -> Account:
        """What the running batches hold."""
        return self._account

    @property
    def pressed(self) -> bool:
        """Whether memory keeps it from taking more work."""
        return bool(self._pressed)

    @property
    def queued(self) -> int:
        """Batches that wait for a slot."""
        return len(self._lines) + len(self._ranks)

    def others_wait(self, owner: Owner) -> bool:
        """Whether batches wait for a slot that are of others than this owner."""
        others = (owned.keys for other, owned in self._by_owner.items() if other != owner)
        return bool(self.queued) and any(self._entries[key].worker is None for keys in others for key in keys)

    def batch_of(self, worker: int) -> Key | None:
        """The batch that a worker is serving."""
        known = self._workers.get(worker)
        return known.entry.spec.key if known and known.entry else None

    def bounded(self) -> list[tuple[int, Key]]:
        """The workers whose batch has declared how much memory it takes, with that batch."""
        busy = [(worker.number, worker.entry) for worker in self._workers.values() if worker.entry is not None]
        return [(number, entry.spec.key) for number, entry in busy if entry.spec.memory_bytes and entry.stop is None]

    def worker_of(self, key: Key) -> int | None:
        """The worker that serves a batch; None while none does."""
        entry = self._entries.get(key)
        return entry.worker if entry else None

    def stopping(self, key: Key) -> Cause | None:
        """Why a batch is being stopped, or None."""
        entry = self._entries.get(key)
        return entry.stop if entry else None

    # ---- transitions

    def _arrive(self, spec: BatchSpec, held: bool, effects: list[Effect]) -> None:
        if spec.key in self._entries:
            return
        reason = self._why_refuse(spec)
        reserved = self._reserved.take(spec.gang, spec) if spec.gang and not reason else ()
        if reserved is None:
            reason = "its gang holds no slots here (any more)"
        if reason:
            effects.append(Refuse(spec.key, reason, self._stopping))
            return
        owner = spec.key[0]
        entry = _Entry(spec, (owner[0], spec.job), holds=bool(spec.gang), gpus=reserved or ())
        self._entries[spec.key] = entry
        owned = self._by_owner.setdefault(owner, _Owned(set()))
        owned.keys.add(spec.key)
        owned.size_bytes += spec.size_bytes
        self._size_bytes += spec.size_bytes
        if not held:
            self._wait(entry)

    def _wait(self, entry: _Entry) -> None:
        """It waits for a worker, and for what it takes unless it has that already."""
        if entry.holds:
            self._ranks.append(entry)
        else:
            self._lines.add(entry)

    def _why_refuse(self, spec: BatchSpec) -> str:
        if self._stopping:
            return "the node is stopping"
        if fault := fault_of(spec):
            return fault
        if never := self._account.why_never(spec):
            return f"it {never}"
        if self._pressed:
            return self._pressed
        if len(self._entries) >= QUEUE_LIMIT:
            return f"the node's queue is full ({QUEUE_LIMIT} batches)"
        if self._size_bytes + spec.size_bytes > QUEUE_LIMIT_BYTES:
            return f"the node's queue is full ({gib(QUEUE_LIMIT_BYTES)})"
        owned = self._by_owner.get(spec.key[0])
        if owned is not None and len(owned.keys) >= OWNER_LIMIT:
            return f"the owner has {OWNER_LIMIT} batches here already"
        if owned is not None and owned.size_bytes + spec.size_bytes > OWNER_LIMIT_BYTES:
            return f"the owner has batches of {gib(owned.size_bytes)} here already"
        return ""

    def _ready(self, number: int, now: float, effects: list[Effect]) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        worker.ready = True
        if worker.entry is not None:
            self._assign(worker, worker.entry, now, effects)

    def _done(self, number: int, retire: bool, now: float, effects: list[Effect]) -> None:
        worker = self._workers.get(number)
        if worker is None or worker.entry is None:
            return
        entry, worker.entry = worker.entry, None
        self._forget(entry, now)
        if retire or entry.spec.fresh or worker.gpus:
            worker.ending = True
            worker.kill_at_s = now + RETIRE_S if worker.gpus else None
            effects.append(Retire(number))

    def _exited(self, event: WorkerExited, now: float, effects: list[Effect]) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        self._account.free(worker.gpus)
        if worker.entry is None:
            return
        entry = worker.entry
        cause = entry.stop or (Cause.OUT_OF_MEMORY if event.out_of_memory else Cause.WORKER_DIED)
        self._forget(entry, now)
        effects.append(Lose(entry.spec.key, event.worker, cause, entry.stop_detail or event.detail))

    def _stop(self, key: Key, cause: Cause, now: float, effects: list[Effect]) -> None:
        entry = self._entries.get(key)
        if entry is None or entry.stop is not None:
            return
        worker = self._workers.get(entry.worker) if entry.worker is not None else None
        if worker is None or not worker.ready:
            if worker is not None:  # forked for it, not yet set up
                self._account.free(worker.gpus)
                worker.entry, worker.env, worker.gpus = None, None, ()
            else:
                self._unqueue(entry)
            self._forget(entry, now)
            effects.append(Lose(key, None, cause, ""))
            return
        entry.stop = cause
        entry.kill_at_s = now + GRACE_S
        self._timed[key] = entry
        effects.append(Interrupt(worker.number))

    def _give_back(self, key: Key, now: float, effects: list[Effect]) -> None:
        """What is held, or has a worker that is not set up yet, is about to begin: it stays."""
        entry = self._entries.get(key)
        if entry is None or entry.stop is not None or entry.spec.gang:
            return
        if entry.worker is not None and self._workers[entry.worker].ready:
            effects.append(Withhold(entry.worker, key))
        elif self._lines.remove(entry):
            self._forget(entry, now)
            effects.append(GiveBack(key))

    def _over_memory(self, number: int, detail: str, effects: list[Effect]) -> None:
        """Killed without an interrupt first: what it would do in its grace is take more."""
        worker = self._workers.get(number)
        entry = worker.entry if worker is not None else None
        if entry is None or entry.stop is not None:
            return
        entry.stop, entry.stop_detail = Cause.MEMORY_LIMIT, detail
        effects.append(Kill(number))

    def _press(self, why: str, now: float, effects: list[Effect]) -> None:
        self._pressed = why
        for entry in [entry for entry in self._entries.values() if why and entry.worker is None]:
            self._unqueue(entry)
            self._forget(entry, now)
            effects.append(Refuse(entry.spec.key, why))

    def _unqueue(self, entry: _Entry) -> None:
        """It waits no longer, if it did: it may be held."""
        if not self._lines.remove(entry) and entry in self._ranks:
            self._ranks.remove(entry)

    def _task_waits(self, key: Key, waiting: bool, now: float) -> None:
        entry = self._entries.get(key)
        if entry is None or entry.worker is None or entry.waits == waiting:
            return
        entry.waits = waiting
        if not entry.spec.gang:
            (self._lines.lends if waiting else self._lines.goes_on)(entry, now)
        self._account.slots_in_use += -entry.spec.cpus if waiting else entry.spec.cpus

    def _forget(self, entry: _Entry, now: float) -> None:
        key = entry.spec.key
        del self._entries[key]
        self._timed.pop(key, None)
        owned = self._by_owner[key[0]]
        owned.keys.remove(key)
        owned.size_bytes -= entry.spec.size_bytes
        self._size_bytes -= entry.spec.size_bytes
        if not owned.keys:
            del self._by_owner[key[0]]
        if entry.worker is not None and not entry.spec.gang:
            self._lines.over(entry, now)
        if entry.holds:
            self._account.give_back(entry.spec, lent=entry.waits)
            if entry.worker is None:
                self._account.free(entry.gpus)

    # ---- scheduling

    def _schedule(self, now: float, effects: list[Effect]) -> None:
        if self._reserved:
            effects += self._reserved.grant(now)
        while not self._stopping and not self._pressed:
            entry = self._next(now)
            if entry is None:
                return
            worker = self._worker_for(entry, effects)
            if worker is None:
                self._put_back(entry, now)
                return
            newly_set_up = worker.env is None
            worker.env, worker.entry, entry.worker = entry.spec.env, entry, worker.number
            if not entry.holds:
                entry.holds, entry.gpus = True, self._account.take(entry.spec)
            worker.gpus = entry.gpus
            if worker.ready:
                self._assign(worker, entry, now, effects)
            if newly_set_up:
                self._keep_spare(effects)

    def _next(self, now: float) -> _Entry | None:
        """What a worker is to be found for: a rank, whose slots are its own already, or the first in turn that fits."""
        if self._ranks:
            return self._ranks.popleft()
        if not self._lines or not self._account.slots_left or self._reserved.waiting:
            return None
        return self._lines.next(self._account.fits, self._account.fits_but_for_slots, now)

    def _put_back(self, entry: _Entry, now: float) -> None:
        if entry.holds:
            self._ranks.appendleft(entry)
        else:
            self._lines.put_back(entry, now)

    def _assign(self, worker: _Worker, entry: _Entry, now: float, effects: list[Effect]) -> None:
        if entry.spec.timeout_s is not None:
            entry.deadline_s = now + entry.spec.timeout_s
            self._timed[entry.spec.key] = entry
        effects.append(Assign(worker.number, entry.spec.key, worker.gpus))

    def _worker_for(self, entry: _Entry, effects: list[Effect]) -> _Worker | None:
        blank = None
        for worker in self._workers.values():
            if worker.entry is not None or worker.ending:
                continue
            if worker.env == entry.spec.env and not entry.spec.fresh and not entry.spec.gpus:
                return worker
            if worker.env is None and (blank is None or (worker.ready and not blank.ready)):
                blank = worker
        if blank is not None:
            return blank
        if len(self._workers) >= WORKERS_LIMIT:
            return None
        worker, fork = self._fork()
        effects.append(fork)
        return worker

    def _keep_spare(self, effects: list[Effect]) -> None:
        """Keep one blank worker at hand; end idle ones beyond two a slot, so that memory does not fill up."""
        if len(self._workers) < 2 * self.slots + 2 and not any(w.env is None for w in self._workers.values()):
            effects.append(self._fork()[1])
        idle = [w for w in self._workers.values() if w.entry is None and not w.ending and w.env is not None]
        for worker in idle[: max(0, len(idle) - 2 * self.slots)]:
            worker.ending = True
            effects.append(Retire(worker.number))

    def _fork(self) -> tuple[_Worker, Fork]:
        worker = _Worker(self._next_worker)
        self._next_worker += 1
        self._workers[worker.number] = worker
        return worker, Fork(worker.number)
