"""The contacts that one node keeps for look-ups: many near its own key, few far away.

Theory of operation (P. Maymounkov, D. Mazières, "Kademlia: A Peer-to-peer Information System Based on the XOR Metric",
IPTPS 2002, sections 2.2 and 4.1). A node's key is the SHA-256 of its id; the distance of two keys is their XOR, as a
number. Bucket i holds up to `BUCKET_SIZE` contacts at a distance from 2^i to 2^(i+1) - 1, the longest unheard first.
Half of all nodes fall into the last bucket, a quarter into the one before, so that with n nodes about log2(n) buckets
hold anything: the table is O(k log n).

    a contact is proved    bucket              what becomes of it
    its id is there        -                   its address is renewed; it moves to the end
    its id is new          has room            it joins at the end
    its id is new          full, one failed    it takes the place of the one that failed
    its id is new          full                it is the bucket's spare; the first is probed if long unheard

    a contact fails        a spare waits       the spare takes its place
    a contact fails        none                it is stale; dropped at the `FAILURES_LIMIT`th time in a row; what
                                               follows within `SAME_FAILURE_S` counts as the same time

Rules: only what a link has proved by its certificate gets in, never what a peer says of others. What answers is never
put out for what is new: old contacts are the ones most likely to stay, and a flood of new ones cannot fill a table. A
stale contact is not named to others; it is kept for a while, so that an outage of one's own does not empty the table.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field

import msgspec

KEY_BITS = 256
BUCKET_SIZE = 16  # contacts in a bucket, and in an answer: k of the paper
FAILURES_LIMIT = 3  # failures in a row after which a contact is dropped
SAME_FAILURE_S = 60.0  # several questions that fail together are one failure
PROBE_AFTER_S = 60.0  # a contact heard of more recently is taken to be there
KEYS_LIMIT = 8192  # keys of ids that are remembered; most answers name the same few contacts


class Contact(msgspec.Struct, frozen=True):
    """Where a node may be reached. It is a hint until a link to it has proved the id."""

    id: str
    host: str
    port: int


@functools.lru_cache(KEYS_LIMIT)
def key_of(id_: str) -> int:
    """A node's place among the keys."""
    return int.from_bytes(hashlib.sha256(id_.encode("utf-8", "surrogatepass")).digest(), "big")


@dataclass(slots=True)
class _Entry:
    """A contact in a bucket."""

    contact: Contact
    key: int
    heard_s: float
    failures: int = 0
    failed_s: float = 0.0  # when the last failure was counted


@dataclass(slots=True)
class _Bucket:
    """Entries by id, the longest unheard first."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    spare: _Entry | None = None  # proved, and found no room


class Table:
    """The buckets of the node with this id."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._own_key = key_of(own_id)
        self._buckets: dict[int, _Bucket] = {}

    def __len__(self) -> int:
        return sum(len(bucket.entries) for bucket in self._buckets.values())

    def bucket_of(self, key: int) -> int:
        """The number of the bucket that a key falls into; -1 for the node's own."""
        return (key ^ self._own_key).bit_length() - 1

    def nearest_bucket(self) -> int | None:
        """The lowest bucket that holds anything."""
        return min((number for number, bucket in self._buckets.items() if bucket.entries), default=None)

    def known(self, id_: str) -> Contact | None:
        """The contact of this id, which was proved at this address."""
        bucket = self._buckets.get(self.bucket_of(key_of(id_)))
        entry = bucket.entries.get(id_) if bucket else None
        return entry.contact if entry else None

    def closest(self, key: int, *, without: str = "", stale: bool = False) -> list[Contact]:
        """Up to `BUCKET_SIZE` contacts closest to a key; with `stale`, those that failed fill up what is missing."""
        entries = [entry for bucket in self._buckets.values() for entry in bucket.entries.values()]
        entries = [entry for entry in entries if entry.contact.id != without and (stale or not entry.failures)]
        entries.sort(key=lambda entry: (entry.failures > 0, entry.key ^ key))
        return [entry.contact for entry in entries[:BUCKET_SIZE]]

    def saw(self, contact: Contact, now: float) -> Contact | None:
        """Take in a contact that was just proved. Returns the one to probe, if it should make room."""
        if contact.id == self._own_id:
            return None
        fresh = _Entry(contact, key_of(contact.id), now)
        bucket = self._buckets.setdefault(self.bucket_of(fresh.key), _Bucket())
        if bucket.entries.pop(contact.id, None) is not None or len(bucket.entries) < BUCKET_SIZE:
            bucket.entries[contact.id] = fresh
            return None
        failed = next((entry for entry in bucket.entries.values() if entry.failures), None)
        if failed is not None:
            del bucket.entries[failed.contact.id]
            bucket.entries[contact.id] = fresh
            return None
        bucket.spare = fresh
        oldest = next(iter(bucket.entries.values()))
        return oldest.contact if now - oldest.heard_s >= PROBE_AFTER_S else None

    def failed(self, contact: Contact, now: float) -> None:
        """A contact did not answer at this address."""
        bucket, entry = self._at(contact)
        if entry is None:
            return
        if not entry.failures or now - entry.failed_s >= SAME_FAILURE_S:
            entry.failures += 1
            entry.failed_s = now
        if entry.failures >= FAILURES_LIMIT or bucket.spare is not None:
            _drop(bucket, entry)

    def mistaken(self, contact: Contact) -> None:
        """The address proved to be another node's."""
        bucket, entry = self._at(contact)
        if entry is not None:
            _drop(bucket, entry)

    def _at(self, contact: Contact) -> tuple[_Bucket, _Entry | None]:
        """Take a contact off as a spare, and find its entry at this very address; another address proves nothing."""
        bucket = self._buckets.get(self.bucket_of(key_of(contact.id)), _Bucket())
        if bucket.spare is not None and bucket.spare.contact == contact:
            bucket.spare = None
        entry = bucket.entries.get(contact.id)
        return bucket, entry if entry is not None and entry.contact == contact else None


def _drop(bucket: _Bucket, entry: _Entry) -> None:
    """Give the place of an entry to the spare."""
    del bucket.entries[entry.contact.id]
    if bucket.spare is not None:
        bucket.entries[bucket.spare.contact.id] = bucket.spare
        bucket.spare = None
