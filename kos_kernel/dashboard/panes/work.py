"""The work: jobs with their progress, the tasks of one of them, stories, and cancelling."""

from __future__ import annotations

from typing import Any

import msgspec

from kos_cluster.core.records import Story
from kos_cluster.errors import NoSuchTaskError
from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.snapshot import JobSight
from kos_kernel.dashboard.panes.desk import Answer, Desk, Question, asked
from kos_kernel.dashboard.panes.rows import Row, Rows

NAME = "work"
STORIES_LIMIT = 50  # tasks of a job whose stories are shown at once: those with more than one attempt, or failed, first


class OfWork(msgspec.Struct, frozen=True):
    """A question about a job, or about a task as JOB.INDEX."""

    id: str


class OfTasks(msgspec.Struct, frozen=True):
    """A window on a job's tasks; see `services.monitor.tasklist`."""

    job: str
    state: str
    search: str
    offset: int
    count: int


class Feed:
    """What the pane is told."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rows = Rows()

    def news(self, full: bool) -> dict[str, Any]:
        jobs = self._model.jobs
        told = self._rows.news({id_: _row(job) for id_, job in jobs.items()}, full)
        return {**told, "at_s": self._model.at_s}


def _row(job: JobSight) -> Row:
    """The fields in the order in which the front end names them."""
    return [
        job.name,
        job.user,
        job.state,
        job.total,
        job.done,
        job.failed,
        job.running,
        round(job.since_s, 2),
        None if job.ended_s is None else round(job.ended_s, 2),
        list(job.nodes),
        job.reruns,
        job.driver,
    ]


def _tasks(desk: Desk, question: Question) -> Any:
    wanted = asked(question, OfTasks)
    with desk.lock:
        job = desk.model.jobs.get(wanted.job)
    total = job.total if job is not None else 0
    window = desk.tasks.window(
        desk.cluster(), wanted.job, total, wanted.state, wanted.search, wanted.offset, wanted.count
    )
    return msgspec.to_builtins(window)


def _story(desk: Desk, question: Question) -> dict[str, Any]:
    id_ = asked(question, OfWork).id
    stories = sorted(_stories(desk, id_), key=lambda story: (-len(story.attempts), story.state != "failed"))
    return {"stories": msgspec.to_builtins(stories[:STORIES_LIMIT]), "more": max(0, len(stories) - STORIES_LIMIT)}


def _stories(desk: Desk, id_: str) -> list[Story]:
    cluster = desk.cluster()
    job, _, index = id_.partition(".")
    if index.isascii() and index.isdigit():
        return cluster.own_stories(job, [int(index)]) or cluster.stories(id_)
    return cluster.stories(id_)


def _cancel(desk: Desk, question: Question) -> None:
    id_ = asked(question, OfWork).id
    if not desk.cluster().cancel(id_):
        raise NoSuchTaskError(f"No node knows a job or task {id_!r} any more.", "It may have ended.")


ASKED: dict[str, Answer] = {"tasks": _tasks, "story": _story, "cancel": _cancel}
