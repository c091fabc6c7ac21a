"""What is written before what is said: nothing leaves early, nothing is lost, and writes are grouped without changing
what they come to."""

from __future__ import annotations

from functools import reduce
from itertools import combinations
from random import Random

import pytest

from kos_cluster.core.ordering import WITHHELD_LIMIT, Action, Ordering, Write, merge
from kos_cluster.core.raft import Apply, Entry, HardState, Kind, Membership, Persist, Send, Snapshot
from kos_cluster.core.raft.messages import TimeoutNow
from tests.core.raft.network import Disk


def message(name: int) -> TimeoutNow:
    return TimeoutNow(group="g", term=name)


def send(name: int, after: int) -> Send:
    return Send("b", message(name), after)


def write(number: int, *entries: Entry) -> Persist:
    return Persist(number, HardState(number), 1, entries)


def entry(index: int, term: int = 1) -> Entry:
    return Entry(index, term, Kind.COMMAND, b"%d" % term)


def sent(actions: list[Action]) -> list[int]:
    return [action.message.term for action in actions if isinstance(action, Send)]


def written(actions: list[Action]) -> list[int]:
    return [action.batch.number for action in actions if isinstance(action, Write)]


def test_a_message_waits_for_its_write_and_others_do_not() -> None:
    ordering = Ordering()
    actions = ordering.take([write(1), send(10, after=1), send(11, after=0), Apply(())])
    assert (written(actions), sent(actions)) == ([1], [11])
    assert Apply(()) in actions
    assert sent(ordering.written(1)) == [10]
    assert sent(ordering.take([send(12, after=1)])) == [12]


def test_what_comes_during_a_write_is_one_write_later() -> None:
    ordering = Ordering()
    assert written(ordering.take([write(1, entry(1))])) == [1]
    for number in (2, 3, 4):
        assert ordering.take([write(number, entry(number)), send(number, after=number)]) == []
    released = ordering.written(1)
    assert (written(released), sent(released)) == ([4], [])
    batch = next(action.batch for action in released if isinstance(action, Write))
    assert [e.index for e in batch.entries] == [2, 3, 4]
    assert batch.hard_state == HardState(4)
    assert sent(ordering.written(4)) == [2, 3, 4]


def test_messages_of_a_later_write_stay_when_an_earlier_one_ends() -> None:
    ordering = Ordering()
    ordering.take([write(1), send(1, after=1)])
    ordering.take([write(2), send(2, after=2), send(3, after=1)])
    assert sent(ordering.written(1)) == [1, 3]
    assert sent(ordering.written(2)) == [2]


def test_a_report_of_another_write_is_refused() -> None:
    ordering = Ordering()
    ordering.take([write(1)])
    with pytest.raises(ValueError, match="write 2 was reported, but 1 is in flight"):
        ordering.written(2)
    ordering.written(1)
    with pytest.raises(ValueError, match="but None is in flight"):
        ordering.written(1)


def test_withheld_messages_are_bounded_and_the_oldest_go() -> None:
    ordering = Ordering()
    ordering.take([write(1), *(send(name, after=1) for name in range(WITHHELD_LIMIT + 5))])
    assert sent(ordering.written(1)) == list(range(5, WITHHELD_LIMIT + 5))


def some_writes(random: Random) -> list[Persist]:
    """Writes as a machine makes them: appends, cut-offs, compactions, whole new logs."""
    first, last, writes = 1, 0, []
    for number in range(1, random.randrange(2, 12)):
        choice = random.random()
        entries: tuple[Entry, ...] = ()
        snapshot, reset = None, False
        if choice < 0.15 and last > first:
            at = random.randrange(first, last + 1)
            snapshot, first = Snapshot(at, number, Membership(("a",)), b"s%d" % number), random.randrange(first, at + 1)
        elif choice < 0.35:
            last = random.randrange(first, last + 5)  # a log that went another way may have been longer
            snapshot, reset, first = Snapshot(last, number, Membership(("b",)), b"r%d" % number), True, last + 1
        elif choice < 0.75:  # else the hard state alone
            start = random.randrange(max(first, last - 3), last + 2)
            entries = tuple(entry(start + i, number) for i in range(random.randrange(1, 5)))
            last = entries[-1].index
        writes.append(Persist(number, HardState(number, None, number), first, entries, snapshot, reset))
    return writes


def test_a_grouped_write_leaves_the_disk_as_its_parts_would() -> None:
    for seed in range(600):
        writes = some_writes(Random(seed))
        for first, last in combinations(range(len(writes) + 1), 2):
            one_by_one, grouped = Disk.empty(), Disk.empty()
            for each in writes[:first]:
                one_by_one.write(each)
                grouped.write(each)
            for each in writes[first:last]:
                one_by_one.write(each)
            grouped.write(reduce(merge, writes[first:last]))
            assert grouped.restored() == one_by_one.restored(), f"seed {seed}, writes {first} to {last}"
