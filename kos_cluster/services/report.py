"""`kos report`: one file that shows what ran where and when, to be read without a network.

Theory of operation. The nodes remember the last batches that they ran (`node.history`); their stories, and the lists of
jobs and nodes, are all that goes in. Tasks that a node ran as one batch have the same times, and are one bar. A node's
bars are laid in as many lanes as it takes for none to cover another.

Rules: pure but for `write`. The page holds no script and no address, and every text in it is escaped, for it may come
from another machine. It is bounded; what is left out is said.
"""

from __future__ import annotations

import html
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kos_cluster import __version__
from kos_cluster.core.records import Attempt, AttemptEnd, JobSummary, Story, TaskState
from kos_cluster.errors import UsageError
from kos_cluster.tasks import markup

JOBS_LIMIT = 200  # the newest
GONE = "gone"  # in the place of the user, where the process that submitted a job is not there any more
BARS_LIMIT = 4000  # of the gantt, the newest
FAILURES_LIMIT = 200
CAUSE_LIMIT_CHARACTERS = 400
INPUT_JOBS_LIMIT = 8  # that one job's row names
_WIDTH, _LEFT, _LANE, _GAP = 1000, 120, 12, 10  # of the gantt, in its own units
_FINE = (AttemptEnd.DONE, AttemptEnd.OPEN)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
td, th { padding: 0.15rem 0.8rem 0.15rem 0; vertical-align: top; border-bottom: 1px solid #8884; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.done { fill: #2f8f5b; } .open { fill: #3f7fc4; } .bad { fill: #c4453f; }
.lane { fill: #8882; } .tick { stroke: #8886; }
.legend span { margin-right: 1.2rem; } .legend svg { width: 0.8em; height: 0.8em; }
"""


@dataclass(frozen=True)
class Bar:
    """Tasks of one job that a node ran as one batch."""

    node: str
    begin_s: float
    end_s: float
    end: AttemptEnd
    text: str


def write(path: Path, page: str) -> None:
    """Raises UsageError when the file cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}).", "Name a file in a folder that exists."
        ) from None


def page(
    cluster: str,
    nodes: Sequence[Mapping[str, Any]],
    jobs: Sequence[JobSummary],
    stories: Mapping[str, Sequence[Story]],
    now: float,
    left_out: int = 0,
) -> str:
    """The whole file. `stories`: job -> what is known of its tasks. `left_out`: jobs that are known beside these."""
    told = sorted(jobs, key=lambda job: job.since_s)
    attempts = [(story, attempt) for job in told for story in stories[job.job] for attempt in story.attempts]
    title = f"KOS report: cluster {cluster}"
    parts = [
        _head(title, cluster, nodes, told, left_out, attempts, now),
        "<h2>What ran where and when</h2>",
        gantt(bars(attempts, now), now),
        "<h2>Jobs, and what they moved</h2>",
        _jobs(told, stories),
        "<h2>Nodes: transfers and memory</h2>",
        _nodes(nodes, attempts),
        "<h2>Failures</h2>",
        _failures(attempts),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def job_of(id_: str, stories: Sequence[Story]) -> JobSummary:
    """A job whose submitter has gone, as far as the nodes remember its tasks."""
    states = Counter(story.state for story in stories)
    attempts = [attempt for story in stories for attempt in story.attempts]
    return JobSummary(
        job=id_,
        name=stories[0].name,
        user=GONE,
        total=len(stories),
        done=states[TaskState.DONE],
        failed=states[TaskState.FAILED] + states[TaskState.CANCELLED],
        running=0,
        since_s=min(attempt.sent_s for attempt in attempts),
        nodes=tuple(sorted({attempt.node for attempt in attempts})),
        reruns=len(attempts) - len(stories),
    )


def bars(attempts: Iterable[tuple[Story, Attempt]], now: float) -> list[Bar]:
    """The bars of the gantt, the newest `BARS_LIMIT`, in the order of their beginning."""
    batches: dict[tuple[Any, ...], list[Story]] = defaultdict(list)
    for story, attempt in attempts:
        begin = attempt.started_s or attempt.sent_s
        job = story.task.partition(".")[0]
        batches[attempt.node, job, begin, attempt.ended_s, attempt.end, attempt.number].append(story)
    made = []
    for (node, _, begin, ended, end, number), of in batches.items():
        finish = now if ended is None else max(ended, begin)
        tasks = of[0].task if len(of) == 1 else f"{of[0].task} and {len(of) - 1} more"
        again = f", attempt {number}" if number > 1 else ""
        text = f"{tasks} ({of[0].name}){again}: {end}, {finish - begin:.2f} s"
        made.append(Bar(node, begin, finish, end, text))
    return sorted(made, key=lambda bar: bar.begin_s)[-BARS_LIMIT:]


def lanes(of_node: Sequence[Bar]) -> list[list[Bar]]:
    """One node's bars, in the order of their beginning, in lanes where none covers another."""
    laid: list[list[Bar]] = []
    for bar in of_node:
        free = next((lane for lane in laid if lane[-1].end_s <= bar.begin_s), None)
        if free is None:
            laid.append([bar])
        else:
            free.append(bar)
    return laid


def gantt(shown: Sequence[Bar], now: float) -> str:
    """The bars as inline SVG."""
    if not shown:
        return "<p>No node remembers a task.</p>"
    begin = min(bar.begin_s for bar in shown)
    span = max(max(bar.end_s for bar in shown) - begin, 1e-3)
    scale = (_WIDTH - _LEFT) / span
    drawn: list[str] = []
    top = 20
    for node in sorted({bar.node for bar in shown}):
        laid = lanes([bar for bar in shown if bar.node == node])
        height = len(laid) * _LANE
        drawn.append(f'<text x="0" y="{top + 10}">{html.escape(node)}</text>')
        drawn.append(f'<rect class="lane" x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT}" height="{height}"/>')
        for place, lane in enumerate(laid):
            drawn += [_rect(bar, top + place * _LANE, begin, scale) for bar in lane]
        top += height + _GAP
    ticks = "".join(_tick(span * part / 5, span, top) for part in range(6))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begin))
    legend = "".join(
        f'<span><svg viewBox="0 0 1 1"><rect class="{kind}" width="1" height="1"/></svg> {text}</span>'
        for kind, text in (("done", "done"), ("open", "not ended"), ("bad", "failed, lost or cancelled"))
    )
    return (
        f'<p class="legend">{legend}</p><svg viewBox="0 0 {_WIDTH} {top}" role="img" '
        f'aria-label="Tasks by node over {span:.1f} seconds">{ticks}{"".join(drawn)}</svg>'
        f"<p>Seconds after {when}. A bar is what a node ran as one batch; point at it for its tasks.</p>"
    )


def _rect(bar: Bar, top: float, begin: float, scale: float) -> str:
    kind = "done" if bar.end is AttemptEnd.DONE else "open" if bar.end is AttemptEnd.OPEN else "bad"
    left = _LEFT + (bar.begin_s - begin) * scale
    width = max((bar.end_s - bar.begin_s) * scale, 0.7)
    return (
        f'<rect class="{kind}" x="{left:.2f}" y="{top + 1:.0f}" width="{width:.2f}" height="{_LANE - 2}">'
        f"<title>{html.escape(bar.text)}</title></rect>"
    )


def _tick(at_s: float, span: float, height: float) -> str:
    left = _LEFT + (_WIDTH - _LEFT) * at_s / span
    anchor = "end" if at_s == span else "middle"
    return (
        f'<line class="tick" x1="{left:.1f}" x2="{left:.1f}" y1="14" y2="{height}"/>'
        f'<text x="{left:.1f}" y="10" text-anchor="{anchor}">{at_s:.4g}</text>'
    )


def _head(
    title: str,
    cluster: str,
    nodes: Sequence[Mapping[str, Any]],
    told: Sequence[JobSummary],
    left_out: int,
    attempts: Sequence[tuple[Story, Attempt]],
    now: float,
) -> str:
    alive = sum(node["state"] == "alive" for node in nodes)
    failed = sum(attempt.end not in _FINE for _, attempt in attempts)
    older = f" Only the newest {len(told)} of {len(told) + left_out} jobs are told." if left_out else ""
    sentence = (
        f"{alive} of {len(nodes)} nodes alive, {len(told)} jobs, {len(attempts)} attempts at tasks, {failed} of which "
        f"failed, were lost or cancelled. Written {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(now))} by KOS "
        f"{__version__}, from what the nodes remember.{older}"
    )
    return f"<h1>{html.escape(title)}</h1><p>{html.escape(sentence)}</p>"


def _jobs(told: Sequence[JobSummary], stories: Mapping[str, Sequence[Story]]) -> str:
    heads = (
        "JOB",
        "NAME",
        "USER",
        "DONE",
        "FAILED",
        "TOTAL",
        "RUN AGAIN",
        "NODES",
        "TAKES RESULTS OF",
        "TO NODES",
        "FROM NODES",
        "MEMORY, AT MOST",
    )
    rows = []
    for job in told:
        attempts = [attempt for story in stories[job.job] for attempt in story.attempts]
        rows.append(
            [
                *(job.job, job.name, job.user, str(job.done), str(job.failed), str(job.total), str(job.reruns)),
                ", ".join(job.nodes),
                ", ".join(_inputs_of(stories[job.job])),
                *_moved(attempts),
            ]
        )
    return markup.table(heads, rows, {3, 4, 5, 6, 9, 10, 11})


def _inputs_of(stories: Sequence[Story]) -> list[str]:
    """The jobs whose results a job's tasks take, the first `INPUT_JOBS_LIMIT` of them."""
    jobs = dict.fromkeys(task.partition(".")[0] for story in stories for task in story.inputs)
    return [*jobs][:INPUT_JOBS_LIMIT] + ["..."] * (len(jobs) > INPUT_JOBS_LIMIT)


def _nodes(nodes: Sequence[Mapping[str, Any]], attempts: Sequence[tuple[Story, Attempt]]) -> str:
    by_node: dict[str, list[Attempt]] = defaultdict(list)
    for _, attempt in attempts:
        by_node[attempt.node].append(attempt)
    heads = (
        "NODE",
        "STATE",
        "SLOTS",
        "ATTEMPTS",
        "BUSY",
        "RECEIVED",
        "GAVE BACK",
        "A WORKER'S MEMORY, AT MOST",
        "MEMORY NOW",
    )
    rows = [
        [
            *(node["name"], node["state"], str(node["slots"]), str(len(by_node[node["name"]]))),
            f"{_busy_s(by_node[node['name']]):.1f} s",
            *_moved(by_node[node["name"]]),
            f"{node['memory_percent']:.0f} %",
        ]
        for node in nodes
    ]
    return markup.table(heads, rows, set(range(2, 9)))


def _busy_s(attempts: Iterable[Attempt]) -> float:
    """Seconds in which workers ran; tasks of one batch have the same times, which count once."""
    spans = {(a.started_s, a.ended_s) for a in attempts if a.started_s is not None and a.ended_s is not None}
    return sum(ended - started for started, ended in spans)


def _moved(attempts: Sequence[Attempt]) -> list[str]:
    return [
        _size(sum(attempt.received_bytes for attempt in attempts)),
        _size(sum(attempt.returned_bytes for attempt in attempts)),
        _size(max((attempt.peak_memory_bytes for attempt in attempts), default=0)),
    ]


def _failures(attempts: Sequence[tuple[Story, Attempt]]) -> str:
    failed = [(story, attempt) for story, attempt in attempts if attempt.end not in _FINE]
    if not failed:
        return "<p>None.</p>"
    counted = ", ".join(f"{count} {end}" for end, count in Counter(str(a.end) for _, a in failed).most_common())
    rows = [
        [
            *(story.task, story.name, str(attempt.number), attempt.node),
            time.strftime("%H:%M:%S", time.localtime(attempt.ended_s or attempt.sent_s)),
            *(str(attempt.end), attempt.cause[:CAUSE_LIMIT_CHARACTERS]),
        ]
        for story, attempt in failed[-FAILURES_LIMIT:]
    ]
    left_out = f" The last {FAILURES_LIMIT} are told." if len(failed) > FAILURES_LIMIT else ""
    heads = ("TASK", "NAME", "ATTEMPT", "NODE", "AT", "END", "CAUSE")
    return f"<p>{html.escape(counted)}.{left_out}</p>{markup.table(heads, rows, {2})}"


def _size(size_bytes: int) -> str:
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= length:
            return f"{size_bytes / length:.1f} {unit}"
    return f"{size_bytes} B"
