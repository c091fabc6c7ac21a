"""How a cluster, a future and the results of a map look in a notebook.

Rules: made of what this process knows already, without asking a node, as it is drawn wherever the object is the last
thing in a cell. The text form says the same in one line.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

from kos_cluster.core.records import AttemptEnd, JobSummary, Member, MemberState, Story
from kos_cluster.tasks import markup


def nodes(members: Sequence[Member]) -> str:
    """So many nodes and slots, in words."""
    alive = [member for member in members if member.state is MemberState.ALIVE]
    slots = sum(member.slots for member in alive)
    count = f"{len(alive)} of {len(members)}" if len(alive) < len(members) else str(len(alive))
    return f"{count} node{'s' * (len(members) != 1)}, {slots} slot{'s' * (slots != 1)}"


def cluster(head: str, members: Sequence[Member]) -> str:
    """A cluster with its nodes."""
    rows = [[m.name, str(m.state), m.address, str(m.slots), "drained" if m.drained else ""] for m in members]
    return markup.table(("NAME", "STATE", "ADDRESS", "SLOTS", ""), rows, {3}, head.strip("<>"))


def future(head: str, story: Story | None) -> str:
    """A future with the attempts at its task."""
    if story is None or not story.attempts:
        return markup.lines([head.strip("<>")])
    rows = []
    for attempt in story.attempts:
        began = attempt.started_s or attempt.sent_s
        took = (attempt.ended_s or time.time()) - began
        end = "" if attempt.end is AttemptEnd.OPEN else str(attempt.end)
        rows.append([str(attempt.number), attempt.node, f"{max(0.0, took):.2f} s", end, attempt.cause])
    caption = f"{head.strip('<>')}: {story.name}, {story.state}"
    return markup.table(("ATTEMPT", "NODE", "TOOK", "END", "CAUSE"), rows, {0, 2}, caption)


def progress(total: int, counts: JobSummary | None) -> str:
    """How far the tasks of a map are, in words."""
    tasks = f"{total} task{'s' * (total != 1)}"
    if counts is None:
        return tasks
    failed = f", {counts.failed} failed or cancelled" if counts.failed else ""
    running = f", {counts.running} on their way" if counts.running else ""
    return f"{tasks}, {counts.done} done{failed}{running}"


def results(head: str, total: int, counts: JobSummary | None) -> str:
    """The results of a map, with a bar as long as some are missing."""
    if counts is None or counts.done + counts.failed >= total:
        return markup.lines([head.strip("<>")])
    ended = counts.done + counts.failed
    nodes_ = f" on {', '.join(counts.nodes)}" if counts.nodes else ""
    bar = f'<progress value="{ended}" max="{total}" style="width:20em"></progress>'
    return f"<div>{bar} {html.escape(head.strip('<>') + nodes_)}</div>"
