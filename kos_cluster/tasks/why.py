"""Why a task is where it is: what `kos why` tells.

Theory of operation. Nodes know what reached them: what runs, since when, and what is queued. What has reached none
waits at its owner, and only the owner knows what it needs and how it judged each node. So the answer is complete in
the process that submitted the job, and everywhere for a detached job, whose driver is asked; elsewhere it names the
process that knows, and says what can be done.

Rules: pure. Equal answers are one row, however many tasks they are of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from kos_cluster.core.capacity import gib, gpus_told, slots_told
from kos_cluster.core.records import Attempt, HeldTasks, JobSummary, Layout, Needs, Story, TaskState, runs_of
from kos_cluster.core.replicated.jobs import JobState

NOTEBOOK = "a notebook"  # how a process of one is called
RUNS_LIMIT = 8  # runs of task numbers told in one row


class Why(msgspec.Struct, frozen=True):
    """One row: some tasks that are at the same place for the same reason. `tasks` is as "JOB.0-7,9"."""

    tasks: str
    count: int
    state: TaskState
    node: str
    why: str


class WouldGo(msgspec.Struct, frozen=True):
    """Where a task would go: a node's name, empty when it would wait; why; and what would come of it on each node."""

    node: str
    reasons: tuple[str, ...]
    nodes: dict[str, str]


def explain(
    id_: str,
    summary: JobSummary | None,
    stories: Sequence[Story],
    nodes: Sequence[Mapping[str, Any]],
    standing: tuple[Needs, Sequence[str]] | None,
    now: float,
) -> list[Why]:
    """The rows for a job, or for one task as JOB.INDEX. `standing`: as the owner has it, if that tells."""
    job, _, only = id_.partition(".")
    sent: dict[tuple[TaskState, str, str], list[int]] = {}
    for story in stories:
        if story.state is not TaskState.WAITING and story.attempts:  # what was cancelled unsent has been nowhere
            node, why = _of_story(story, nodes, now)
            sent.setdefault((story.state, node, why), []).append(int(story.task.partition(".")[2]))
    rows = [
        Why(_named(job, indices), len(indices), state, node, why)
        for (state, node, why), indices in sorted(sent.items(), key=lambda item: item[1])
    ]
    if summary is None:
        return rows
    if summary.engine:
        return _on_engine(id_, summary)
    waiting = summary.total - summary.done - summary.failed - summary.running
    if only:
        index = int(only) if only.isascii() and only.isdigit() else summary.total
        held = [group for group in summary.held if 0 <= index - group.start < group.count]
        if held and not rows:
            return [Why(id_, 1, TaskState.WAITING, "", _waits_for(held[0]))]
        waiting = int(index < summary.total and not rows and waiting > 0)
    else:
        for group in summary.held:
            tasks = _named(job, range(group.start, group.start + group.count))
            rows.append(Why(tasks, group.count, TaskState.WAITING, "", _waits_for(group)))
            waiting -= group.count
    if waiting > 0:
        state = _STATES_WITHOUT_END.get(summary.state, TaskState.WAITING)
        rows.append(Why(id_, waiting, state, "", _why_waiting(summary, standing, nodes)))
    return rows


def _on_engine(id_: str, summary: JobSummary) -> list[Why]:
    """Of a job on an engine only the counts are known, to others than its program and its engine."""
    why = f"it is on engine {summary.engine}, which places its tasks itself: see 'kos engine status {summary.engine}'"
    done = summary.done + summary.failed
    counts = {TaskState.RUNNING: summary.running, TaskState.WAITING: summary.total - done - summary.running}
    return [Why(id_, count, state, ", ".join(summary.nodes), why) for state, count in counts.items() if count > 0]


def _waits_for(group: HeldTasks) -> str:
    """What tasks wait for that are not to be sent yet."""
    more = f" and {group.more} more" if group.more else ""
    return f"waits for {', '.join(group.waits_for)}{more}"


def _of_story(story: Story, nodes: Sequence[Mapping[str, Any]], now: float) -> tuple[str, str]:
    """Where a task is, or was last, and why."""
    last = story.attempts[-1]
    tries = f", attempt {last.number}" if last.number > 1 else ""
    if story.state is TaskState.RUNNING:
        since = f" for {now - last.started_s:.0f} s" if last.started_s else ""
        return last.node, f"it runs{tries}{since}" + (f"; {last.cause}" if last.cause else "") + _chosen(last)
    if story.state is TaskState.SENT:
        load = next(
            (f" ({n['running']} of {n['slots']} busy, {n['queued']} queued)" for n in nodes if n["name"] == last.node),
            "",
        )
        return last.node, f"it is queued until a slot is free{load}{tries}" + _chosen(last)
    return last.node, f"it is over: {last.end}" + (f", {last.cause}" if last.cause else "")


def _chosen(attempt: Attempt) -> str:
    """What spoke for the node when the task was sent there, as far as that is known here."""
    return f"; the node was chosen with {attempt.chosen}" if attempt.chosen else ""


def _why_waiting(
    summary: JobSummary, standing: tuple[Needs, Sequence[str]] | None, nodes: Iterable[Mapping[str, Any]]
) -> str:
    if standing is None:
        if summary.state in _STATES_WITHOUT_END:
            return f"it has no result, and its job is {summary.state}"
        alive = [n for n in nodes if n["state"] == "alive"]
        free = ", ".join(f"{n['name']} {n['slots'] - n['running']} of {n['slots']}" for n in alive)
        return f"{_who_knows(summary)} Slots free: {free or 'none'}"
    needs, told = standing
    if told and told[0].startswith("needs "):
        return "; ".join(told)
    return f"it needs {needed(needs)}. " + "; ".join(told)


def _who_knows(summary: JobSummary) -> str:
    """Of tasks whose owner has not told why they wait: who that is, and what can be done."""
    job = summary.job
    if summary.state == JobState.WAITING:
        return "no node drives its job yet: the coordinator gives it to one."
    if summary.driver:
        return (
            f"it has not been sent to a node. {summary.driver} drives its job and has not told why: the driver begins, "
            "or that node is lost and another one takes over. Ask again in some seconds."
        )
    user = summary.user or "another user"
    known = f"it has not been sent to a node, and only the process that submitted it knows why: {summary.program}, "
    if not summary.program:
        known = "it has not been sent to a node, and only the process that submitted it knows why, "
    if summary.parent:
        ask = f"That one is task {summary.parent}: see 'kos why {summary.parent}'."
    elif summary.program.startswith(NOTEBOOK):
        ask = f"In that notebook type '%kos why {job}'."
    else:
        ask = f"In that program kos.connect().why({job!r}) tells it."
    return (
        f"{known}of {user}. {ask} From here 'kos dry-run' with its options tells where such a task would go, and "
        f"'kos cancel {job}' ends it."
    )


def needed(needs: Needs) -> str:
    """What a task needs, in words."""
    parts = [slots_told(needs.cpus)]
    parts += [gib(needs.memory_bytes)] if needs.memory_bytes else []
    parts += [gpus_told(needs.gpus)] if needs.gpus else []
    parts += [f"{count} of {name}" for name, count in needs.resources]
    parts += [f"the node {needs.on}"] if needs.on else []
    parts += [f"{term.name} {'other than ' * term.away}{term.value}" for term in needs.labels]
    parts += [f"to be away from {' and '.join(needs.away_from)}"] if needs.away_from else []
    parts += [f"to be near {' or '.join(needs.near)}"] if needs.near else []
    parts += [f"to be apart from {' and '.join(needs.apart)}"] if needs.apart else []
    parts += [f"to be {_LAYOUTS[needs.layout]}"] if needs.layout is not Layout.ANY else []
    parts += [f"(better with {', '.join(needs.modules)})"] if needs.modules else []
    return ", ".join(parts)


# Of a detached job that is over: how those of its tasks stand that have no result.
_STATES_WITHOUT_END: dict[str, TaskState] = {JobState.CANCELLED: TaskState.CANCELLED, JobState.FAILED: TaskState.FAILED}
_LAYOUTS = {Layout.SPREAD: "spread", Layout.PACK: "packed"}


def _named(job: str, indices: Sequence[int]) -> str:
    runs = runs_of(sorted(indices))
    told = [str(start) if count == 1 else f"{start}-{start + count - 1}" for start, count in runs[:RUNS_LIMIT]]
    return f"{job}.{','.join(told)}{',...' * (len(runs) > RUNS_LIMIT)}"
