"""`kos ps`, `cancel`, `logs`, `why` and `story`: looking at work, and stopping it.

Rules: an id is a job's, or one task's as JOB.INDEX. An id that no node knows is NoSuchTaskError.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import msgspec

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, ago
from kos_cluster.core.records import Attempt, AttemptEnd, JobSummary, Story
from kos_cluster.errors import NoSuchTaskError

JOB_COLUMNS = (
    Column("JOB"),
    Column("NAME"),
    Column("USER"),
    Column("STATE"),
    Column("DONE", right=True),
    Column("FAILED", right=True),
    Column("RUNNING", right=True),
    Column("TOTAL", right=True),
    Column("SINCE", right=True),
    Column("NODES"),
    Column("DRIVER"),
)
WHY_COLUMNS = (Column("TASKS"), Column("COUNT", right=True), Column("STATE"), Column("NODE"), Column("WHY"))
STORY_COLUMNS = (
    Column("TASK"),
    Column("STATE"),
    Column("TAKES"),
    Column("ATTEMPT", right=True),
    Column("NODE"),
    Column("SENT"),
    Column("TOOK", right=True),
    Column("END"),
    Column("CAUSE"),
)


def ps_(parsed: argparse.Namespace, console: Console) -> int:
    """List the jobs that run, those that ended while their client is still there, and all detached ones."""
    cluster = kos.connect(parsed.cluster)
    jobs = cluster.jobs()
    if parsed.json:
        console.json(jobs)
    else:
        console.listing(jobs, JOB_COLUMNS, [_job_row(job, time.time()) for job in jobs])
    if any(job.driver for job in jobs):  # one of them may be an engine's supervisor
        from kos_cluster.cli.engines import note_troubles

        note_troubles(cluster, jobs, console)
    return 0


def cancel_(parsed: argparse.Namespace, console: Console) -> int:
    """Stop a job or a task everywhere."""
    if not kos.connect(parsed.cluster).cancel(parsed.id):
        raise _unknown(parsed.id)
    console.answer(f"{parsed.id} is cancelled.")
    return 0


def logs_(parsed: argparse.Namespace, console: Console) -> int:
    """Print the last output of a job or a task, each task's under its name when there are several."""
    cluster = kos.connect(parsed.cluster)
    logs = cluster.logs(parsed.id)
    if not logs and not cluster.stories(parsed.id):  # else it is known, and wrote nothing
        jobs = cluster.jobs()
        kept = "what its tasks print is with the program that submitted it, and on no node"
        raise _on_engine(jobs, parsed.id, kept) or _not_sent(jobs, parsed.id) or _unknown(parsed.id)
    if parsed.json:
        console.json([{"task": task, "output": data.decode(errors="replace")} for task, data in logs])
        return 0
    for task, data in logs:
        if len(logs) > 1:
            console.answer(f"--- {task}")
        console.raw(console.out, data)
    return 0


def why_(parsed: argparse.Namespace, console: Console) -> int:
    """Tell where tasks are and why."""
    rows = kos.connect(parsed.cluster).why(parsed.id)
    if not rows:
        raise _unknown(parsed.id)
    if parsed.json:
        console.json(rows)
    else:
        console.listing(rows, WHY_COLUMNS, [[row.tasks, str(row.count), row.state, row.node, row.why] for row in rows])
    return 0


def story_(parsed: argparse.Namespace, console: Console) -> int:
    """Tell what happened to each task."""
    cluster = kos.connect(parsed.cluster)
    stories = cluster.stories(parsed.id)
    if not stories:
        jobs = cluster.jobs()
        known = "its attempts are known to the program that submitted it, by story() of its futures"
        raise _on_engine(jobs, parsed.id, known) or _not_sent(jobs, parsed.id) or _unknown(parsed.id)
    if parsed.json:
        console.json(stories)
    else:
        rows = [row for story in stories for row in _story_rows(story)]
        console.listing([record for story in stories for record in _story_records(story)], STORY_COLUMNS, rows)
    return 0


def _on_engine(jobs: Sequence[JobSummary], id_: str, where: str) -> NoSuchTaskError | None:
    """The error for what no node keeps of a job on an engine, if it is one."""
    engine = next((known.engine for known in jobs if known.job == id_.partition(".")[0]), "")
    if not engine:
        return None
    return NoSuchTaskError(
        f"Job {id_} is on engine {engine}: {where}.",
        f"Type 'kos engine dashboard {engine}' to see its tasks, 'kos cancel {id_}' to end it.",
    )


def _not_sent(jobs: Sequence[JobSummary], id_: str) -> NoSuchTaskError | None:
    """The error for what waits at its owner, if it does."""
    job, _, index = id_.partition(".")
    total = next((known.total for known in jobs if known.job == job), 0)
    if not total or (index and not (index.isascii() and index.isdigit() and int(index) < total)):
        return None
    return NoSuchTaskError(f"Nothing of {id_} has reached a node yet.", f"Type 'kos why {id_}' for what it waits for.")


def _unknown(id_: str) -> NoSuchTaskError:
    return NoSuchTaskError(f"No node knows a job or task {id_!r}.", "Type 'kos ps' for the jobs that run.")


def _job_row(job: JobSummary, now: float) -> list[str]:
    counts = (job.done, job.failed, job.running, job.total)
    since = ago(max(0.0, now - job.since_s))
    state = job.state or ("running" if job.done + job.failed < job.total else "done")
    driver = f"{job.driver} ({job.epoch})" if job.driver else job.engine and f"engine {job.engine}"
    return [job.job, job.name, job.user, state, *map(str, counts), since, ", ".join(job.nodes), driver]


def _story_rows(story: Story) -> list[list[str]]:
    """One row an attempt; the task, its state and the tasks whose results it takes stand in the first."""
    task = [story.task, str(story.state), ", ".join(story.inputs)]
    if not story.attempts:
        return [[*task, "", "", "", "", "not sent yet", ""]]
    heads = [task, *([["", "", ""]] * (len(story.attempts) - 1))]
    return [[*head, *_attempt_cells(attempt)] for head, attempt in zip(heads, story.attempts, strict=True)]


def _story_records(story: Story) -> list[dict[str, Any]]:
    """One record an attempt, as `_story_rows` has rows."""
    task = {"task": story.task, "name": story.name, "state": story.state, "inputs": list(story.inputs)}
    return [{**task, **msgspec.to_builtins(attempt)} for attempt in story.attempts] or [task]


def _attempt_cells(attempt: Attempt) -> list[str]:
    sent = time.strftime("%H:%M:%S", time.localtime(attempt.sent_s))
    took = "" if attempt.ended_s is None else ago(max(0.0, attempt.ended_s - (attempt.started_s or attempt.sent_s)))
    end = "not ended" if attempt.end is AttemptEnd.OPEN else str(attempt.end)
    return [str(attempt.number), attempt.node, sent, took, end, attempt.cause]
