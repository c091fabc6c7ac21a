"""The routing table: old contacts that answer stay, new ones wait, and what others say proves nothing."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.buckets import (
    BUCKET_SIZE,
    FAILURES_LIMIT,
    PROBE_AFTER_S,
    SAME_FAILURE_S,
    Contact,
    Table,
    key_of,
)

LATER = PROBE_AFTER_S + 1.0


def contact(id_: str, port: int = 7567) -> Contact:
    return Contact(id_, "host", port)


def of_bucket(table: Table, number: int, count: int) -> list[Contact]:
    """Contacts that fall into a bucket."""
    ids = (f"node{i}" for i in itertools.count())
    return [contact(id_) for id_ in itertools.islice((i for i in ids if table.bucket_of(key_of(i)) == number), count)]


def full() -> tuple[Table, list[Contact], list[Contact]]:
    """A table whose last bucket is full, what is in it from the longest unheard on, and more for that bucket."""
    table = Table("me")
    contacts = of_bucket(table, 255, BUCKET_SIZE + 3)
    for one in contacts[:BUCKET_SIZE]:
        assert table.saw(one, 0.0) is None
    return table, contacts[:BUCKET_SIZE], contacts[BUCKET_SIZE:]


def named(table: Table) -> set[Contact]:
    return set(table.closest(0))


def test_a_full_bucket_keeps_who_is_in_it_and_names_the_longest_unheard_to_probe():
    table, inside, more = full()
    table.saw(inside[0], 1.0)  # heard again, so the second is the longest unheard
    assert table.saw(more[0], LATER) == inside[1]
    assert named(table) == set(inside) and len(table) == BUCKET_SIZE


def test_who_was_heard_a_moment_ago_is_not_probed():
    table, _, more = full()
    assert table.saw(more[0], PROBE_AFTER_S - 0.1) is None


def test_the_newcomer_takes_the_place_of_an_old_contact_only_when_that_fails():
    table, inside, more = full()
    table.saw(more[0], LATER)
    table.saw(inside[0], LATER)  # it answered the probe
    assert named(table) == set(inside)
    table.failed(inside[1], LATER)
    assert named(table) == {*inside, more[0]} - {inside[1]}


def test_the_latest_newcomer_waits_and_one_that_fails_does_not():
    table, inside, more = full()
    table.saw(more[0], LATER)
    table.saw(more[1], LATER)
    table.failed(more[1], LATER)
    table.failed(inside[0], LATER)
    assert named(table) == set(inside[1:])  # no spare was left, so it is stale
    table.saw(more[2], LATER)
    assert named(table) == {*inside[1:], more[2]}


def test_a_stale_contact_is_not_named_and_is_kept_for_a_while():
    table = Table("me")
    table.saw(contact("a"), 0.0)
    for number in range(FAILURES_LIMIT - 1):
        table.failed(contact("a"), number * SAME_FAILURE_S)
        assert table.closest(0) == [] and table.closest(0, stale=True) == [contact("a")]
    table.saw(contact("a"), 1.0)
    assert table.closest(0) == [contact("a")]
    for number in range(FAILURES_LIMIT):
        table.failed(contact("a"), 1000.0 + number * SAME_FAILURE_S)
    assert table.closest(0, stale=True) == [] and len(table) == 0


def test_questions_that_fail_together_are_one_failure():
    table = Table("me")
    table.saw(contact("a"), 0.0)
    for number in range(10):
        table.failed(contact("a"), 0.1 * number)
    assert table.closest(0) == [] and table.closest(0, stale=True) == [contact("a")]


def test_stale_contacts_come_after_all_others():
    table = Table("me")
    for number in range(4):
        table.saw(contact(f"n{number}"), 0.0)
    nearest = table.closest(0)[0]
    table.failed(nearest, 0.0)
    assert table.closest(0, stale=True)[-1] == nearest


def test_an_address_that_is_another_node_s_is_dropped_at_once():
    table = Table("me")
    table.saw(contact("a"), 0.0)
    table.mistaken(contact("a"))
    assert len(table) == 0 and table.known("a") is None


def test_a_wrong_address_that_others_tell_harms_no_contact():
    table = Table("me")
    table.saw(contact("a"), 0.0)
    table.failed(contact("a", port=1), 0.0)
    table.mistaken(contact("a", port=1))
    table.failed(contact("nobody"), 0.0)
    assert table.closest(0) == [contact("a")]


def test_a_contact_moves_with_its_proved_address():
    table = Table("me")
    table.saw(contact("a"), 0.0)
    table.saw(contact("a", port=9), 1.0)
    assert table.known("a") == contact("a", port=9) and len(table) == 1


def test_a_node_does_not_keep_itself():
    table = Table("me")
    assert table.saw(contact("me"), 0.0) is None
    assert len(table) == 0 and table.nearest_bucket() is None


@given(ids=st.sets(st.text(max_size=8), max_size=60), target=st.text(max_size=8))
def test_the_closest_are_the_closest_of_all_that_are_kept(ids: set[str], target: str):
    table = Table("me")
    for id_ in sorted(ids):
        table.saw(contact(id_), 0.0)
    kept = [id_ for id_ in sorted(ids) if table.known(id_)]
    assert len(kept) == len(table)
    right = sorted((id_ for id_ in kept if id_ != target), key=lambda id_: key_of(id_) ^ key_of(target))
    assert [one.id for one in table.closest(key_of(target), without=target)] == right[:BUCKET_SIZE]
    buckets = [table.bucket_of(key_of(id_)) for id_ in kept]
    assert table.nearest_bucket() == min(buckets, default=None)
    assert max(map(buckets.count, buckets), default=0) <= BUCKET_SIZE
