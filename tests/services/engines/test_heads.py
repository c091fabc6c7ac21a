"""How an engine is seen whose supervisor has not said yet what has become of its head, and whose certificates end."""

from __future__ import annotations

import msgspec
import pytest

from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.services.engines.heads import AHEAD_S, Ends, as_seen
from kos_cluster.services.engines.spec import Record, State

NOW_S = 1_800_000_000.0
LOST = "2 tasks that waited or ran, and 3.0 MiB of results"


def record(**changes: object) -> Record:
    made = Record("dask", "dask", "e", "j", State.SERVING, 1, 1, 0, 0, False, NOW_S, node="node1", workers=1)
    return msgspec.structs.replace(
        made, waiting=1, running=1, held_bytes=3 << 20, until_s=NOW_S + 30 * 86400, **changes
    )


def member(state: MemberState, name: str = "node1") -> Member:
    return Member(name, name, "127.0.0.1", 1, 1, Versions("", 0, "", "", ""), 1, state)


def test_an_engine_whose_node_is_there_is_seen_as_it_is_written() -> None:
    for members in ([], [member(MemberState.ALIVE)], [member(MemberState.LEFT), member(MemberState.ALIVE)]):
        assert as_seen(record(why="a worker was lost"), members, NOW_S) == record(why="a worker was lost")


def test_a_node_that_does_not_answer_is_told_with_what_may_be_lost() -> None:
    seen = as_seen(record(), [member(MemberState.SUSPECT)], NOW_S)
    assert (seen.state, seen.why) == (
        State.SERVING,
        f"node node1 does not answer, with its head; lost if it is: {LOST}",
    )


@pytest.mark.parametrize("state", [MemberState.DEAD, MemberState.LEFT])
def test_a_lost_node_is_told_with_what_was_lost(state: MemberState) -> None:
    seen = as_seen(record(), [member(state), member(MemberState.ALIVE, "node2")], NOW_S)
    assert (seen.state, seen.workers) == (State.LOST, 0)
    assert seen.why == f"node node1, where its head was, is lost; lost: {LOST}"


@pytest.mark.parametrize("state", [State.STARTING, State.FAILED])
def test_what_the_supervisor_has_said_since_counts(state: State) -> None:
    told = record(state=state, why="its head was lost")
    assert as_seen(told, [member(MemberState.DEAD)], NOW_S) == told


def test_a_silent_head_does_not_hide_what_was_lost_before() -> None:
    seen = as_seen(record(silent=True, why=f"lost: {LOST}"), [member(MemberState.ALIVE)], NOW_S)
    assert seen.why == f"its head has not answered for more than 3 s; before: lost: {LOST}"


def test_the_end_of_certificates_is_told_ahead_with_what_to_type() -> None:
    here = [member(MemberState.ALIVE)]
    assert as_seen(record(), here, record().until_s - AHEAD_S - 1).why == ""
    ahead = as_seen(record(), here, record().until_s - AHEAD_S)
    assert ahead.why == (
        "its certificates end on 2027-02-14 08:00 UTC, and it takes no new links then: "
        "type 'kos engine stop dask', then start it again before"
    )
    assert as_seen(record(), here, record().until_s).why.startswith(
        "its certificates ended on 2027-02-14 08:00 UTC, and it takes no new links: type 'kos engine stop dask'"
    )


def test_the_log_hears_of_the_end_once_ahead_and_once_when_it_is_there() -> None:
    ends = Ends(record())
    days = [ends.news(NOW_S + day * 86400.0) for day in range(40)]
    assert {day: news.split(" ")[2] for day, news in enumerate(days) if news} == {27: "end", 30: "ended"}
    assert Ends(record(state=State.STARTING)).news(NOW_S) == ""
