"""Anti-entropy: two nodes compare what they hold of the members, and exchange what differs.

Theory of operation. Members fall into buckets by a checksum of their id; a bucket's sum is the exclusive or of a hash
of (id, precedence) of each. `SyncRequest` carries the sums; equal sums end it after one small answer. For the buckets
that differ the other side answers `SyncDigest`, the precedence of each id in them; then the first sends in `SyncData`
what it has and the other lacks, and the ids that it lacks itself, which a last `SyncData` brings.

Rules. Members that left are not compared (each node forgets them in its own time); whoever is sent an older belief
about them answers with the newer one. Messages stay below `SYNC_LIMIT_BYTES`, cut at whole buckets and entries.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from kos_cluster.core.records import MemberState
from kos_cluster.core.swim.messages import SYNC_LIMIT_BYTES, Entry, Known, SyncData, SyncDigest, precedence, size_bytes

BITS_LIMIT = 8  # at most 256 buckets
_IN_BUCKET = 16  # members that one bucket should hold
_HELD_BYTES = 12  # of one id in a digest besides the id itself, at most

T = TypeVar("T")


def bits_for(members: int) -> int:
    """How finely to divide this many members."""
    return min(BITS_LIMIT, max(0, (members // _IN_BUCKET).bit_length()))


def are_bits(bits: int) -> bool:
    """Whether a division that was asked for is within bounds."""
    return 0 <= bits <= BITS_LIMIT


def are_sums(bits: int, sums: tuple[int, ...]) -> bool:
    """Whether these can be the sums of a request."""
    return are_bits(bits) and len(sums) == 1 << bits


def bucket_of(id: str, bits: int) -> int:
    """The bucket of an id. With one more bit a bucket divides into two; its number modulo `2**bits` stays."""
    return zlib.crc32(id.encode()) & ((1 << bits) - 1)


def sums(rows: Iterable[Known], bits: int) -> tuple[int, ...]:
    """The sum of each bucket, each in 64 bits."""
    result = [0] * (1 << bits)
    for id_, held in _compared(rows):
        digest = hashlib.blake2b(f"{held} {id_}".encode(), digest_size=8).digest()
        result[bucket_of(id_, bits)] ^= int.from_bytes(digest, "big")
    return tuple(result)


def digests(rows: Iterable[Known], bits: int, theirs: tuple[int, ...]) -> list[SyncDigest] | list[SyncData]:
    """What is held in the buckets whose sums differ from theirs; an empty `SyncData` when all are equal."""
    rows = list(rows)
    ours = sums(rows, bits)
    differing = {bucket for bucket in range(1 << bits) if ours[bucket] != theirs[bucket]}
    if not differing:
        return [SyncData()]
    fine = max(bits, bits_for(len(rows)))  # one who knows nobody asks with a single bucket; cut it small
    held: dict[int, dict[str, int]] = {b: {} for b in range(1 << fine) if b & ((1 << bits) - 1) in differing}
    for id_, number in _compared(rows):
        if (bucket := bucket_of(id_, fine)) in held:
            held[bucket][id_] = number
    return [
        SyncDigest(fine, tuple(b for b, _ in part), {id_: n for _, ids in part for id_, n in ids.items()})
        for part in _cut(held.items(), lambda item: 3 + sum(len(id_.encode()) + _HELD_BYTES for id_ in item[1]))
    ]


def compare(rows: Iterable[Known], digest: SyncDigest, held_of: Callable[[str], int]) -> tuple[list[Known], list[str]]:
    """What the sender of a digest lacks, and the ids of which it holds more. `held_of` is -1 for what is not known."""
    buckets = frozenset(digest.buckets)
    offered = [
        row
        for row in rows
        if bucket_of(row.member.id, digest.bits) in buckets
        and row.member.state is not MemberState.LEFT
        and digest.held.get(row.member.id, -1) < held_of(row.member.id)
    ]
    newer_left = [
        row
        for row in rows
        if row.member.state is MemberState.LEFT and -1 < digest.held.get(row.member.id, -1) < held_of(row.member.id)
    ]
    wanted = [id_ for id_, number in digest.held.items() if number > held_of(id_)]
    return offered + newer_left, wanted


def data(entries: Iterable[Entry], wanted: Iterable[str]) -> list[SyncData]:
    """Entries and wishes as messages; none when there are neither."""
    return [
        *(SyncData(tuple(part), ()) for part in _cut(entries, size_bytes)),
        *(SyncData((), tuple(part)) for part in _cut(wanted, lambda id_: len(id_.encode()) + 5)),
    ]


def _compared(rows: Iterable[Known]) -> Iterator[tuple[str, int]]:
    for row in rows:
        if row.member.state is not MemberState.LEFT:
            yield row.member.id, precedence(row.member.incarnation, row.member.state)


def _cut(items: Iterable[T], weight: Callable[[T], int]) -> Iterator[list[T]]:
    """Divide into parts that are below the limit of one message."""
    part: list[T] = []
    room = SYNC_LIMIT_BYTES - 64
    for item in items:
        size = weight(item)
        if part and size > room:
            yield part
            part, room = [], SYNC_LIMIT_BYTES - 64
        part.append(item)
        room -= size
    if part:
        yield part
