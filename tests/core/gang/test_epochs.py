"""One life of a gang after another: what starts, what ends and what restarts it."""

from __future__ import annotations

import pytest

from kos_cluster.core.gang import epochs as e
from kos_cluster.errors import GangError

NODES = ("a", "b")
LOST, RAISED, GONE = OSError("lost"), ValueError("raised"), RuntimeError("another has gone")


def started(restarts: int = 0, vital: int | None = None) -> e.Epochs:
    gang = e.Epochs(2, restarts, vital)
    assert gang.begin() == [e.Ask(1)]
    assert gang.handle(e.Reserved(1, NODES), 0.0) == [e.Launch(1, NODES)]
    assert gang.handle(e.Ready(1, 0, b"x"), 0.0) == []
    assert gang.handle(e.Ready(1, 1, b"y"), 0.0) == [e.Tell(1, (0, 1), (b"x", b"y"))]
    return gang


def test_all_that_return_make_a_success():
    gang = started()
    assert gang.handle(e.RankDone(1, 1), 1.0) == []
    assert gang.handle(e.RankDone(1, 0), 1.0) == [e.Succeed(1)]
    assert gang.handle(e.RankLost(1, 0, LOST), 2.0) == []


def test_a_rank_whose_table_got_lost_is_told_again():
    assert started().handle(e.Ready(1, 1, b"y"), 1.0) == [e.Tell(1, (1,), (b"x", b"y"))]


def test_a_lost_rank_restarts_all_under_a_new_epoch_and_the_old_one_is_not_heard():
    gang = started(restarts=1)
    assert gang.handle(e.RankLost(1, 0, LOST), 1.0) == [e.End(1), e.Ask(2)]
    for late in (e.Ready(1, 0, b"x"), e.RankDone(1, 0), e.RankFailed(1, 0, RAISED, False), e.Reserved(1, NODES)):
        assert gang.handle(late, 2.0) == []
    assert gang.epoch == 2 and gang.missing == [0, 1]
    gang.handle(e.Reserved(2, NODES), 3.0)
    gang.handle(e.Ready(2, 0, b"x"), 3.0)
    gang.handle(e.Ready(2, 1, b"z"), 3.0)
    assert gang.handle(e.RankLost(2, 1, LOST), 4.0) == [e.End(2), e.Fail(2, 1, LOST)]


def test_an_exception_ends_the_gang_though_restarts_are_left():
    failed = e.RankFailed(1, 1, RAISED, follows=False)
    assert started(restarts=5).handle(failed, 1.0) == [e.End(1), e.Fail(1, 1, RAISED)]


def test_a_consequence_waits_for_its_cause():
    gang = started(restarts=1)
    assert gang.handle(e.RankFailed(1, 0, GONE, follows=True), 1.0) == []
    assert gang.handle(e.RankLost(1, 1, LOST), 5.0) == [e.End(1), e.Ask(2)]
    gang = started()
    gang.handle(e.RankFailed(1, 0, GONE, follows=True), 1.0)
    assert gang.tick(1.0 + e.SETTLE_S - 0.1) == []
    assert gang.tick(1.0 + e.SETTLE_S) == [e.End(1), e.Fail(1, 0, GONE)]


def test_a_consequence_of_a_rank_that_returned_early_is_the_end_once_nothing_more_can_come():
    gang = started(restarts=1)
    gang.handle(e.RankDone(1, 1), 1.0)
    assert gang.handle(e.RankFailed(1, 0, GONE, follows=True), 1.0) == [e.End(1), e.Fail(1, 0, GONE)]


def test_of_consequences_the_one_is_told_that_names_who_went_first():
    gang = e.Epochs(3, restarts=0)
    gang.handle(e.Reserved(1, ("a", "b", "c")), 0.0)
    for rank in range(3):
        gang.handle(e.Ready(1, rank, b"x"), 0.0)
    of_a_consequence, of_the_first = GangError("0 has gone"), GangError("1 has gone")
    gang.handle(e.RankDone(1, 1), 1.0)
    gang.handle(e.RankFailed(1, 2, of_a_consequence, follows=True, of=0), 1.0)
    told = gang.handle(e.RankFailed(1, 0, of_the_first, follows=True, of=1), 1.0)
    assert told == [e.End(1), e.Fail(1, 0, of_the_first)]


def test_what_is_lost_before_it_began_costs_no_restart_and_ends_after_some_tries():
    gang = e.Epochs(2, restarts=0)
    for epoch in range(1, e.STARTS_LIMIT):
        gang.handle(e.Reserved(epoch, NODES), 0.0)
        assert gang.handle(e.RankLost(epoch, 0, LOST), 0.0) == [e.End(epoch), e.Ask(epoch + 1)]
    gang.handle(e.Reserved(e.STARTS_LIMIT, NODES), 0.0)
    assert gang.handle(e.RankLost(e.STARTS_LIMIT, 0, LOST), 0.0)[-1] == e.Fail(e.STARTS_LIMIT, 0, LOST)


def test_ranks_that_do_not_come_in_time_are_asked_for_anew_and_named_in_the_end():
    gang = e.Epochs(2, restarts=0)
    for epoch in range(1, e.STARTS_LIMIT + 1):
        gang.handle(e.Reserved(epoch, NODES), 0.0)
        gang.handle(e.Ready(epoch, 0, b"x"), 1.0)
        assert gang.tick(e.START_TIMEOUT_S - 0.1) == []
        effects = gang.tick(e.START_TIMEOUT_S)
    fail = effects[-1]
    assert isinstance(fail, e.Fail) and isinstance(fail.error, GangError)
    assert "of its 2 ranks, 1 were not in place" in fail.error.message


@pytest.mark.parametrize("state", ["asking", "running"])
def test_a_cancelled_gang_is_over(state: str):
    gang = started() if state == "running" else e.Epochs(2, 3)
    assert gang.handle(e.Cancelled(LOST), 1.0) == [e.End(1), e.Fail(1, None, LOST)]
    assert gang.handle(e.Reserved(1, NODES), 2.0) == []


@pytest.mark.parametrize("end", [e.RankLost(1, 1, LOST), e.RankFailed(1, 1, RAISED, follows=False)])
def test_the_others_go_on_without_a_rank_that_is_not_vital(end: e.RankLost | e.RankFailed):
    gang = started(restarts=1, vital=1)
    assert gang.handle(end, 1.0) == []
    assert gang.gone == {1: end.error}
    assert gang.tick(1.0 + 2 * e.SETTLE_S) == []
    assert gang.handle(e.RankDone(1, 0), 90.0) == [e.Succeed(1)]


def test_a_vital_rank_that_is_lost_restarts_all_and_nobody_is_gone_from_the_new_epoch():
    gang = started(restarts=1, vital=1)
    gang.handle(e.RankLost(1, 1, LOST), 1.0)
    assert gang.handle(e.RankLost(1, 0, LOST), 2.0) == [e.End(1), e.Ask(2)]
    assert gang.gone == {}
    assert started(vital=1).handle(e.RankLost(1, 0, LOST), 1.0) == [e.End(1), e.Fail(1, 0, LOST)]


def test_a_gang_without_vital_ranks_is_over_when_all_have_returned_or_gone():
    gang = started(vital=0)
    assert gang.handle(e.RankLost(1, 0, LOST), 1.0) == []
    assert gang.handle(e.RankFailed(1, 1, GONE, follows=True, of=0), 1.0) == [e.Succeed(1)]
    assert gang.gone == {0: LOST, 1: GONE}


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_vital_rank_that_ends_for_the_sake_of_one_that_is_gone_ends_the_gang_by_that_ones_end(lost_first: bool):
    gang = started(restarts=1, vital=1)
    ends = [e.RankLost(1, 1, LOST), e.RankFailed(1, 0, GONE, follows=True, of=1)]
    first, second = ends if lost_first else reversed(ends)
    assert gang.handle(first, 1.0) == []
    assert gang.handle(second, 2.0) == [e.End(1), e.Ask(2)]
    gang = started(restarts=1, vital=1)
    gang.handle(e.RankFailed(1, 1, RAISED, follows=False), 1.0)
    assert gang.handle(e.RankFailed(1, 0, GONE, follows=True, of=1), 1.0) == [e.End(1), e.Fail(1, 1, RAISED)]


def test_before_user_code_runs_every_rank_is_vital():
    gang = e.Epochs(2, restarts=0, vital=0)
    gang.handle(e.Reserved(1, NODES), 0.0)
    gang.handle(e.Ready(1, 0, b"x"), 0.0)
    assert gang.handle(e.RankLost(1, 1, LOST), 0.0) == [e.End(1), e.Ask(2)]
    gang.handle(e.Reserved(2, NODES), 0.0)
    assert gang.handle(e.RankFailed(2, 1, RAISED, follows=False), 0.0) == [e.End(2), e.Fail(2, 1, RAISED)]
