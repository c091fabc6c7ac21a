"""Whose refusals a node believes, before it holds itself to be removed."""

from __future__ import annotations

import pytest

from kos_cluster.node.turning import ALONE_S, COUNTS_S, ENOUGH, STANDS_S, TurnedAway

STRANGER = "10.9.9.9:7567"


def others(count: int) -> list[str]:
    return [f"10.0.0.{number}:7567" for number in range(count)]


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (50, 3)])
def test_several_members_must_refuse_it(count: int, wanted: int) -> None:
    turned, members = TurnedAway(), others(count)
    for refusals, address in enumerate(members[:wanted], 1):
        assert not turned.held(set(members), 1.0 + STANDS_S)
        turned.refuse(address, 1.0)
        turned.refuse(address, 1.1)
        assert turned.held(set(members), 1.0 + STANDS_S) == (refusals == wanted)


def test_one_that_refuses_alone_is_believed_late() -> None:
    turned, members = TurnedAway(), others(2)
    for now in range(int(ALONE_S) + 1):
        turned.refuse(members[0], float(now))
        assert turned.held(set(members), float(now)) == (now >= ALONE_S)


def test_a_refusal_of_long_ago_does_not_count() -> None:
    """It came from one that was wrong, and is gone since; later nobody can be reached for a while."""
    turned, members = TurnedAway(), others(2)
    turned.refuse(members[0], 0.0)
    turned.heard(members[1], COUNTS_S / 2)
    for now in (COUNTS_S, ALONE_S, 2 * ALONE_S):
        assert not turned.held(set(members), now)
        assert not turned.doubted(now)


def test_a_refusal_counts_only_while_it_stands() -> None:
    turned, members = TurnedAway(), others(1)
    turned.refuse(members[0], 10.0)
    assert turned.doubted(10.0)
    assert not turned.held(set(members), 10.0 + STANDS_S - 0.1)
    turned.heard(members[0], 11.0)
    assert not turned.doubted(11.0)
    assert not turned.held(set(members), 10.0 + ALONE_S)


def test_what_another_removed_one_says_does_not_make_the_others_refusals_void() -> None:
    """Five nodes, two of which were removed while they were cut off together: they hear each other all the time."""
    members = others(4)
    removed_too, *rest = members
    turned = TurnedAway()
    for now in range(int(STANDS_S) + 3):
        turned.heard(removed_too, float(now))
        for address in rest:
            turned.refuse(address, float(now))
    assert turned.held(set(members), STANDS_S + 2)


@pytest.mark.parametrize("count", [2, 4, 50])
def test_while_as_many_speak_with_it_as_refuse_it_belongs(count: int) -> None:
    """A few that are wrong, or in wrong hands, must not stop a node that the others speak with."""
    turned, members = TurnedAway(), others(count)
    liars = min(ENOUGH, count // 2)
    for now in range(0, int(ALONE_S) * 2, int(COUNTS_S) - 1):
        for place, address in enumerate(members):
            (turned.refuse if place < liars else turned.heard)(address, float(now))
        assert not turned.held(set(members), now + STANDS_S)
        assert not turned.doubted(float(now))


def test_words_of_long_ago_do_not_count() -> None:
    turned, members = TurnedAway(), others(4)
    for address in members[2:]:
        turned.heard(address, 0.0)
    for now in range(int(ALONE_S) + 1):
        for address in members[:2]:
            turned.refuse(address, float(now))
        assert turned.held(set(members), float(now)) == (now >= ALONE_S)
        assert turned.doubted(float(now)) == (now >= COUNTS_S)


def test_an_address_that_is_no_members_counts_only_when_no_member_is_known() -> None:
    turned = TurnedAway()
    turned.refuse(STRANGER, 1.0)
    assert not turned.held(set(others(1)), 1.0 + STANDS_S)
    assert turned.held(set(), 1.0 + STANDS_S)
