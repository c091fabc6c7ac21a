"""Load spread beside membership: what each node knows of the others' load, and how old that is.

Theory of operation. Each node sends reports of the load of nodes, its own first. In a cluster of up to `DIRECT_LIMIT`
other members it sends its own to all of them each `PERIOD_S`. In a larger one a report goes to `FANOUT` members at
random and carries what the node has heard of others too: what it passed on least often first, and of that the freshest.
After a report the node pauses until what it sent is within `BUDGET_BYTES_S`. That counts what the message, its
encryption and its frame add to the entries (`ENVELOPE_BYTES`), not what TCP/IP adds. So the period grows with the
cluster up to the time that full reports take, and from there on only the ages grow, in proportion to the members (mean
age, simulated: 0.2 s at 8 nodes, 2 s at 50, 6 s at 200, 27 s at 1,000). Who places work must live with old entries
(`placement`: two random choices, and a full node refuses).

Rules. An age travels, never a time: an entry's age is what it was when it was sent, plus what has passed here since.
What a message waits on its way is not counted, so an age is a lower bound. Of two entries of one node the one with the
larger serial is newer; of two of one serial the older age is nearer to the truth. Entries are kept only of members that
are alive, and dropped when they are older than `stale_after_s`. A report is a hint: only placement may rest on it.

    event      what follows
    Measured   the node's own entry is new
    Peers      entries of others are dropped
    Reported   newer entries are taken in
    tick       a report is sent
"""

from __future__ import annotations

import random

import msgspec
from msgspec.structs import astuple

from kos_cluster.core.records import Load

BUDGET_BYTES_S = 4000  # sent by a node on the average, envelopes included; at most 4 KiB/s in any minute
PERIOD_S = 0.5  # from one report to the next, at least
DIRECT_LIMIT = 8  # other members to which a node reports itself, without others' entries
FANOUT = 3  # members that get one report in a larger cluster
REPORT_LIMIT_BYTES = 1200  # one report, with its envelope
ENVELOPE_BYTES = 46 + 33 + 9  # what a report takes besides its entries: at most, of `net.wire`, CURVE and ZMTP
STALE_S = 15.0  # age at which an entry is dropped, in a small cluster
STALE_S_A_MEMBER = 0.2  # and for each member, since ages grow with them: nearly all that is known is younger


class PackedLoad(Load, frozen=True, array_like=True):
    """A `Load` without its field names, as it travels. Fields that another version lacks have their defaults."""


class LoadEntry(msgspec.Struct, frozen=True, array_like=True):
    """A node's load. `serial` grows with each measurement, through restarts too."""

    id: str
    serial: int
    age_s: float
    load: PackedLoad


class LoadReport(msgspec.Struct, frozen=True, tag="LOAD"):
    """The sender's own load first, then what it has heard of others."""

    entries: tuple[LoadEntry, ...]


# ---- events


class Measured(msgspec.Struct, frozen=True):
    """This node's own load, measured now."""

    load: Load


class Peers(msgspec.Struct, frozen=True):
    """The ids of the other members that are alive or suspected, in any order."""

    ids: tuple[str, ...]


class Reported(msgspec.Struct, frozen=True):
    """A report came."""

    report: LoadReport


Event = Measured | Peers | Reported


class SendReport(msgspec.Struct, frozen=True):
    """Effect: send this report to that member. It may get lost."""

    id: str
    report: LoadReport


class _Heard:
    __slots__ = ("born", "load", "packed", "serial", "told")

    def __init__(self, serial: int, born: float, packed: PackedLoad) -> None:
        self.serial, self.born, self.packed = serial, born, packed
        self.load = Load(*astuple(packed))
        self.told = 0


class LoadGossip:
    """One node's part in it. `first_serial` must be larger than any serial before; an incarnation will do."""

    def __init__(self, id: str, first_serial: int, rng: random.Random, now: float) -> None:
        self._id = id
        self._rng = rng
        self._serial = first_serial
        self._peers: tuple[str, ...] = ()
        self._heard: dict[str, _Heard] = {}  # of peers, and of this node
        self._wanted: frozenset[str] = frozenset((id,))
        self.deadline = now + rng.random() * PERIOD_S  # when `tick` must be called next

    @property
    def stale_after_s(self) -> float:
        """The age at which an entry is dropped."""
        return STALE_S + STALE_S_A_MEMBER * len(self._peers)

    def loads(self, now: float) -> dict[str, tuple[Load, float]]:
        """The last known load of each live member, this node included, with its age in seconds."""
        return {
            id_: (heard.load, max(0.0, now - heard.born))
            for id_, heard in self._heard.items()
            if now - heard.born <= self.stale_after_s
        }

    def handle(self, event: Event, now: float) -> list[SendReport]:
        """Take an event in. Nothing follows at once; the list is empty."""
        match event:
            case Measured(load):
                self._serial += 1
                self._heard[self._id] = _Heard(self._serial, now, PackedLoad(*astuple(load)))
            case Peers(ids):
                self._peers = tuple(sorted(id_ for id_ in ids if id_ != self._id))
                self._wanted = frozenset((self._id, *self._peers))
                self._heard = {id_: heard for id_, heard in self._heard.items() if id_ in self._wanted}
            case Reported(report):
                for entry in report.entries:
                    self._hear(entry, now)
        return []

    def tick(self, now: float) -> list[SendReport]:
        """Send a report when it is time for one."""
        if now < self.deadline:
            return []
        limit_s = self.stale_after_s
        self._heard = {id_: heard for id_, heard in self._heard.items() if now - heard.born <= limit_s}
        report, size = self._report(now)
        to = self._receivers() if report.entries else []
        self.deadline = now + max(PERIOD_S, size * len(to) / BUDGET_BYTES_S)
        return [SendReport(id_, report) for id_ in to]

    def _hear(self, entry: LoadEntry, now: float) -> None:
        if entry.id == self._id or entry.id not in self._wanted or not 0 <= entry.age_s <= self.stale_after_s:
            return
        known, born = self._heard.get(entry.id), now - entry.age_s
        if known is None or entry.serial > known.serial:
            self._heard[entry.id] = _Heard(entry.serial, born, entry.load)
        elif entry.serial == known.serial:
            known.born = min(known.born, born)

    def _receivers(self) -> list[str]:
        if len(self._peers) <= DIRECT_LIMIT:
            return list(self._peers)
        return self._rng.sample(self._peers, FANOUT)

    def _report(self, now: float) -> tuple[LoadReport, int]:
        """The next report, and its size with the envelope."""
        entries: list[LoadEntry] = []
        size = ENVELOPE_BYTES
        for id_, heard in self._candidates():
            entry = LoadEntry(id_, heard.serial, round(max(0.0, now - heard.born), 2), heard.packed)
            size += (entry_bytes := len(msgspec.msgpack.encode(entry)))
            if size > REPORT_LIMIT_BYTES:
                size -= entry_bytes
                break
            entries.append(entry)
            heard.told += 1
        return LoadReport(tuple(entries)), size

    def _candidates(self) -> list[tuple[str, _Heard]]:
        own = [(self._id, self._heard[self._id])] if self._id in self._heard else []
        if len(self._peers) <= DIRECT_LIMIT:
            return own
        others = [item for item in self._heard.items() if item[0] != self._id]
        return own + sorted(others, key=lambda item: (item[1].told, -item[1].born))
