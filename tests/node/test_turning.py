"""Whose refusals a node believes, before it holds itself to be removed."""

from __future__ import annotations

import pytest

from kos_cluster.node.turning import ALONE_S, SILENCE_S, TurnedAway

STRANGER = "10.9.9.9:7567"


def others(count: int) -> set[str]:
    return {f"10.0.0.{number}:7567" for number in range(count)}


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (50, 3)])
def test_several_members_must_refuse_it(count: int, wanted: int) -> None:
    turned, members = TurnedAway(0.0), others(count)
    for refusals, address in enumerate(sorted(members)[:wanted], 1):
        assert not turned.held(members, SILENCE_S + 1)
        turned.refuse(address, 1.0)
        turned.refuse(address, 1.1)
        assert turned.held(members, SILENCE_S + 1) == (refusals == wanted)


def test_one_that_refuses_alone_is_believed_late() -> None:
    turned, members = TurnedAway(0.0), others(2)
    turned.refuse(min(members), 5.0)
    assert not turned.held(members, 5.0 + ALONE_S - 1)
    assert turned.held(members, 5.0 + ALONE_S)


def test_a_word_of_any_node_makes_refusals_void() -> None:
    turned, members = TurnedAway(0.0), others(2)
    for address in members:
        turned.refuse(address, 1.0)
    turned.heard(10.0)
    assert not turned.refused
    assert not turned.held(members, 10.0 + ALONE_S)


def test_while_others_have_spoken_lately_it_belongs() -> None:
    turned, members = TurnedAway(10.0), others(1)
    turned.refuse(min(members), 10.1)
    assert not turned.held(members, 10.0 + SILENCE_S - 0.1)
    assert turned.held(members, 10.0 + SILENCE_S)


def test_an_address_that_is_no_members_counts_only_when_no_member_is_known() -> None:
    turned = TurnedAway(0.0)
    turned.refuse(STRANGER, 1.0)
    assert not turned.held(others(1), SILENCE_S + 1)
    assert turned.held(set(), SILENCE_S + 1)
