"""Where the jobs of others are, as a submit finds it out."""

from __future__ import annotations

from kos_cluster.core.records import JobSummary
from kos_cluster.tasks.relating import places


def job(id_: str, name: str, nodes: tuple[str, ...], done: int = 0) -> JobSummary:
    return JobSummary(id_, name, "ann", 2, done, 0, 1, 0.0, nodes)


def test_jobs_are_found_by_id_and_name_and_those_that_are_over_are_not() -> None:
    jobs = [
        job("a", "web", ("n1",)),
        job("b", "web", ("n2", "gone")),
        job("c", "", ("n3",)),
        job("d", "old", ("n1",), 2),
    ]
    found = places(jobs, {f"n{number}": f"id{number}" for number in range(4)})
    assert found == {
        "a": frozenset({"id1"}),
        "b": frozenset({"id2"}),
        "web": frozenset({"id1", "id2"}),
        "c": frozenset({"id3"}),
    }
