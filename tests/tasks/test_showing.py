"""What a cluster, a future and a map's results look like."""

from __future__ import annotations

from kos_cluster.core.records import Attempt, AttemptEnd, JobSummary, Member, MemberState, Story, TaskState, Versions
from kos_cluster.tasks import showing

VERSIONS = Versions("0.1.0", 2, "3.11.7", "", "3")


def member(name: str, state: MemberState = MemberState.ALIVE) -> Member:
    return Member(f"id-{name}", name, "10.0.0.1", 7567, 4, VERSIONS, 1, state=state)


def test_a_cluster_tells_its_nodes() -> None:
    assert showing.nodes([member("one"), member("two", MemberState.DEAD)]) == "1 of 2 nodes, 4 slots"
    assert showing.nodes([member("one")]) == "1 node, 4 slots"
    drawn = showing.cluster("<kos Cluster 'lab'>", [member("<one>")])
    assert "kos Cluster &#x27;lab&#x27;" in drawn and "&lt;one&gt;" in drawn and "10.0.0.1:7567" in drawn


def test_a_future_tells_its_attempts() -> None:
    lost = Attempt(1, "one", 100.0, 101.0, 103.0, AttemptEnd.NODE_LOST, "silent <for 5 s>")
    story = Story("j.0", "fit", TaskState.DONE, (lost, Attempt(2, "two", 104.0, 104.0, 104.5, AttemptEnd.DONE)))
    drawn = showing.future("<kos Future j.0 done>", story)
    assert "kos Future j.0 done: fit, done" in drawn and "node-lost" in drawn and "silent &lt;for 5 s&gt;" in drawn
    assert drawn.index("2.00 s") < drawn.index("0.50 s")
    assert showing.future("<kos Future j.0 pending>", None) == "<div>kos Future j.0 pending</div>"


def test_results_tell_how_far_they_are_and_draw_a_bar_until_they_are_there() -> None:
    counts = JobSummary("j", "f", "", total=8, done=3, failed=1, running=2, since_s=0.0, nodes=("one",))
    assert showing.progress(8, counts) == "8 tasks, 3 done, 1 failed or cancelled, 2 on their way"
    assert '<progress value="4" max="8"' in showing.results("<kos MapResult j>", 8, counts)
    over = JobSummary("j", "f", "", total=1, done=1, failed=0, running=0, since_s=0.0)
    assert showing.results("<kos MapResult j>", 1, over) == "<div>kos MapResult j</div>"
    assert showing.progress(1, None) == "1 task"
