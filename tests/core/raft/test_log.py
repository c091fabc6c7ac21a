"""The log in memory: what it holds, what it vouches for, and where two logs may agree."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.raft import Entry, HardState, Kind, Membership, Restored, Snapshot
from kos_cluster.core.raft.log import TAIL_ENTRIES, Log


def entries(first: int, *terms: int, size_bytes: int = 0) -> list[Entry]:
    return [Entry(first + place, term, Kind.COMMAND, bytes(size_bytes)) for place, term in enumerate(terms)]


def log_of(*terms: int) -> Log:
    return Log(Restored(HardState(), None, tuple(entries(1, *terms))))


def snapshot(index: int, term: int) -> Snapshot:
    return Snapshot(index, term, Membership(("a",)), b"")


def test_what_was_read_from_the_disk_is_durable() -> None:
    log = log_of(1, 1, 2)
    assert (log.first_index, log.last_index, log.last_term, log.durable) == (1, 3, 2, 3)
    assert [log.term_at(index) for index in range(5)] == [0, 1, 1, 2, None]


def test_writes_vouch_for_what_they_held_unless_it_was_cut_off() -> None:
    log = log_of(1)
    log.append(entries(2, 1, 1))
    log.writing(1)
    log.append(entries(4, 1))
    log.writing(2)
    log.written(1)
    assert log.durable == 3
    log.append(entries(3, 2, 2, 2))
    log.writing(3)
    assert log.durable == 2
    log.written(2)
    assert log.durable == 2
    log.written(3)
    assert log.durable == 5


def test_a_new_log_is_not_durable_because_the_old_one_was() -> None:
    log = log_of(1, 1, 1, 1, 1)
    log.reset(snapshot(3, 2))
    assert log.durable == 0
    log.writing(1)
    log.append(entries(4, 2, 2))
    log.writing(2)
    log.written(1)
    assert log.durable == 3
    log.written(2)
    assert log.durable == 5


def test_compaction_keeps_a_tail() -> None:
    log = Log(Restored(HardState(), None, tuple(entries(1, *([1] * (TAIL_ENTRIES + 100))))))
    log.compact(snapshot(50, 1))
    assert log.first_index == 1
    log.compact(snapshot(TAIL_ENTRIES + 60, 1))
    assert (log.base_index, log.base_term, log.first_index) == (60, 1, 61)
    assert log.last_index == TAIL_ENTRIES + 100


def test_a_log_that_begins_before_its_snapshot_is_read_again() -> None:
    restored = Restored(HardState(), snapshot(5, 2), tuple(entries(3, 1, 2, 2, 3)))
    log = Log(restored)
    assert (log.base_index, log.base_term) == (3, 1)
    assert [log.term_at(index) for index in range(2, 8)] == [None, 1, 2, 2, 3, None]


def test_the_place_where_logs_may_agree_skips_terms() -> None:
    log = log_of(1, 1, 1, 4, 4, 7)
    assert log.last_not_after(9, 9) == (6, 7)
    assert log.last_not_after(6, 6) == (5, 4)
    assert log.last_not_after(5, 3) == (3, 1)
    assert log.last_not_after(2, 5) == (2, 1)
    assert log.last_not_after(6, 0) == (0, 0)
    log.reset(snapshot(6, 7))
    assert log.last_not_after(9, 5) == (0, 0)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    base=st.integers(0, 12),
    limit_bytes=st.integers(0, 30),
    count=st.integers(1, 8),
)
def test_a_batch_fits_its_limits(sizes: list[int], cut: int, base: int, limit_bytes: int, count: int) -> None:
    log = log_of()
    every = [Entry(index, 1, Kind.COMMAND, bytes(size)) for index, size in enumerate(sizes, 1)]
    log.append(every)
    cut = cut % len(every)
    log.append(every[cut:])  # cut off and put back
    log.compact(snapshot(min(base, len(every)) + TAIL_ENTRIES, 1))  # the base moves to `base`
    for first in range(log.first_index, log.last_index + 1):
        batch, size_bytes = log.batch(first, limit_bytes, count)
        assert size_bytes == sum(len(entry.data) for entry in batch)
        assert list(batch) == every[first - 1 : first - 1 + len(batch)]
        assert 1 <= len(batch) <= count
        assert size_bytes <= limit_bytes or len(batch) == 1
        if len(batch) < count and batch[-1].index < log.last_index:
            assert size_bytes + len(every[batch[-1].index].data) > limit_bytes
    assert log.batch(log.last_index + 1, limit_bytes, count) == ((), 0)
