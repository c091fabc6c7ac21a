"""The report: one file, with nothing in it that acts or leads out."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.core.records import Attempt, AttemptEnd, JobSummary, Story, TaskState
from kos_cluster.errors import UsageError
from kos_cluster.services import report

EVIL = '<script src="http://evil.example">"'
NODES: list[dict[str, Any]] = [
    {"name": "one", "state": "alive", "slots": 2, "memory_percent": 40.0},
    {"name": EVIL, "state": "dead", "slots": 2, "memory_percent": 0.0},
]
JOBS = [
    JobSummary("j", "fit", "ann", 3, 2, 1, 0, since_s=90.0, nodes=("one", EVIL), reruns=1),
    JobSummary("k", EVIL, "bob", 1, 0, 0, 1, since_s=95.0),
]


def attempt(node: str, begin: float, ended: float | None, end: AttemptEnd, number: int = 1, **more: Any) -> Attempt:
    return Attempt(number, node, begin, begin, ended, end, **more)


STORIES = {
    "j": [
        Story("j.0", "fit", TaskState.DONE, (attempt("one", 100, 104, AttemptEnd.DONE, received_bytes=3 << 20),)),
        Story("j.1", "fit", TaskState.DONE, (attempt("one", 100, 104, AttemptEnd.DONE, peak_memory_bytes=2 << 30),)),
        Story(
            "j.2",
            "fit",
            TaskState.FAILED,
            (
                attempt(EVIL, 101, 102, AttemptEnd.NODE_LOST, cause="silent for 5 s"),
                attempt("one", 103, 105, AttemptEnd.FAILED, 2, cause=EVIL),
            ),
        ),
    ],
    "k": [Story("k.0", EVIL, TaskState.RUNNING, (attempt("one", 106, None, AttemptEnd.OPEN),), ("j.0", "j.1", "x.7"))],
}


class Seen(HTMLParser):
    """The tags of a page, and what stands in its attributes and between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_a_job_is_told_with_those_whose_results_it_takes() -> None:
    text = Seen(report.page("lab", NODES, JOBS, STORIES, 110.0)).text
    assert "TAKES RESULTS OF" in text and " j, x " in text


def test_nothing_in_the_page_acts_or_leads_out() -> None:
    seen = Seen(report.page("lab", NODES, JOBS, STORIES, 110.0))
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(seen.tags)
    assert not {name for name, _ in seen.attributes} & {"href", "src", "action", "onload", "onclick", "xlink:href"}
    assert not any(re.search(r"url\(|https?:", value or "") for name, value in seen.attributes)
    assert "@import" not in seen.text and "url(" not in seen.text


def test_it_tells_what_ran_where_what_moved_and_what_failed() -> None:
    text = re.sub(r"\s+", " ", Seen(report.page("lab", NODES, JOBS, STORIES, 110.0)).text)
    assert "1 of 2 nodes alive, 2 jobs, 5 attempts at tasks, 2 of which failed, were lost or cancelled." in text
    assert "j.0 and 1 more (fit): done, 4.00 s" in text and "k.0" in text and "open, 4.00 s" in text
    assert "3.0 MiB" in text and "2.0 GiB" in text
    assert "j.2 fit 1" in text and "node-lost silent for 5 s" in text and "j.2 (fit), attempt 2: failed" in text


def test_bars_of_a_node_cover_each_other_in_no_lane() -> None:
    made = [report.Bar("one", float(n), n + 2.5, AttemptEnd.DONE, "") for n in range(6)]
    laid = report.lanes(made)
    assert sorted(bar.begin_s for lane in laid for bar in lane) == [bar.begin_s for bar in made]
    assert len(laid) == 3 and all(a.end_s <= b.begin_s for lane in laid for a, b in itertools.pairwise(lane))


def test_a_job_whose_submitter_is_gone_is_told_by_its_tasks() -> None:
    assert report.job_of("j", STORIES["j"]) == JobSummary(
        "j", "fit", "gone", 3, 2, 1, 0, since_s=100, nodes=(EVIL, "one"), reruns=1
    )


def test_jobs_that_are_left_out_are_counted() -> None:
    text = Seen(report.page("lab", NODES, JOBS, STORIES, 110.0, left_out=7)).text
    assert "Only the newest 2 of 9 jobs are told." in text


def test_without_any_task_it_says_so() -> None:
    assert "No node remembers a task." in report.page("lab", [], [], {}, 0.0)


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder that exists"):
        report.write(tmp_path / "no" / "report.html", "")
