"""How a watched cluster looks on a terminal: one frame of `kos top`, and the text form of the notebook's monitor.

Rules: pure: a model in, something that rich prints out. Control characters that come from elsewhere are made visible.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kos_cluster.cli.tables import STYLES, ago, printable
from kos_cluster.services.monitor.changes import Event, Kind
from kos_cluster.services.monitor.model import Model, Totals
from kos_cluster.services.monitor.snapshot import RUNNING, JobSight, NodeSight

BAR_COLUMNS = 14
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 12
_EVENT_STYLES = {
    **dict.fromkeys((Kind.DEAD, Kind.FAILED, Kind.UNREACHABLE), "red"),
    **dict.fromkeys((Kind.SUSPECTED, Kind.RERUN, Kind.LEFT, Kind.DRAINED, Kind.RESTARTED), "yellow"),
    **dict.fromkeys((Kind.ELECTED, Kind.STARTED), "cyan"),
}


def view(model: Model, rows: int) -> RenderableType:
    """The whole, in about so many lines: what is said of the cluster, its nodes, its jobs, the last events."""
    parts: list[RenderableType] = [_title(model)]
    if model.trouble:
        parts.append(Text(printable(model.trouble), style="bold red"))
    parts.append(_totals(model.totals))
    left = max(9, rows - len(parts) - 4)
    jobs = sorted(model.jobs.values(), key=lambda job: (job.state != RUNNING, -job.since_s))
    events = list(model.events)
    shares = _shares(left, len(model.nodes), len(jobs), len(events))
    parts += [Text(), _nodes(model, model.nodes[: shares[0]])]
    if len(model.nodes) > shares[0]:
        parts.append(Text(f"and {len(model.nodes) - shares[0]} more nodes", style="dim"))
    if jobs:
        parts += [Text(), _jobs(jobs[: shares[1]], model.at_s)]
    if events and shares[2]:
        parts += [Text(), *map(_event, events[-shares[2] :])]
    return Group(*parts)


def _shares(left: int, *wanted: int) -> list[int]:
    """How many lines each part gets, so that none starves and none is left empty."""
    shares = [min(want, left // len(wanted)) for want in wanted]
    for place, want in enumerate(wanted):
        shares[place] += min(want - shares[place], left - sum(shares))
    return shares


def _title(model: Model) -> Text:
    text = Text.assemble(("KOS ", "bold"), (printable(model.cluster or "no cluster"), "bold"))
    if model.identity:
        text.append(f"  {printable(model.identity)}, {model.role}", style="dim")
    if model.at_s:
        text.append(f"  {time.strftime('%H:%M:%S', time.localtime(model.at_s))}", style="dim")
    coordinator = model.coordinator
    text.append(f"  coordinator: {printable(coordinator.name) if coordinator else 'none known'}", style="dim")
    return text


def _totals(totals: Totals) -> Text:
    nodes = f"{totals.up} of {totals.nodes} nodes alive"
    slots = f"{totals.busy} of {totals.slots} slots busy"
    loads = f"CPU {totals.cpu_share:.0%}, memory {totals.memory_share:.0%}"
    failed = f", {totals.failed:,} not" if totals.failed else ""
    rerun = f", {totals.reruns:,} rerun" if totals.reruns else ""
    tasks = f"tasks: {totals.running:,} running, {totals.waiting:,} waiting, {totals.done:,} done{failed}{rerun}"
    return Text(f"{nodes}, {slots}, {loads}; {tasks}, {totals.ended_per_s:.1f}/s")


def _nodes(model: Model, nodes: Sequence[NodeSight]) -> Table:
    table = _table("NODE", "STATE", ("SLOTS", True), "CPU", "", ("MEMORY", True), ("NETWORK", True), "")
    for node in nodes:
        up = node.up
        network = node.received_bytes_per_s
        table.add_row(
            printable(node.name),
            Text(node.state, style=STYLES.get(node.state, "")),
            f"{node.load.running} of {node.slots}" if up else "-",
            Text(spark(model.history.last(f"cpu/{node.id}", SPARK_COLUMNS)), style="cyan"),
            f"{node.cpu_share:4.0%}" if up else "-",
            f"{node.memory_share:.0%}" if up else "-",
            "-" if network is None else f"{(network + (node.sent_bytes_per_s or 0.0)) / 1e6:.1f} MB/s",
            Text(", ".join(_notes(node)), style="dim"),
        )
    return table


def _notes(node: NodeSight) -> list[str]:
    vote = ["coordinator"] if node.coordinator else ["voter"] if node.voter else []
    queued = [f"{node.load.queued:,} queued"] if node.load.queued else []
    return [*vote, *(["drained"] if node.drained else []), *queued]


def _jobs(jobs: Sequence[JobSight], now: float) -> Table:
    table = _table("JOB", "NAME", "USER", "STATE", "PROGRESS", ("DONE", True), ("SINCE", True), "NODES")
    for job in jobs:
        counts = f"{job.done:,}/{job.total:,}" + (f" ({job.failed:,} not)" if job.failed else "")
        table.add_row(
            job.id,
            printable(job.name),
            printable(job.user),
            Text(job.state, style=STYLES.get(job.state, "")),
            ProgressBar(total=max(1, job.total), completed=job.done + job.failed, width=BAR_COLUMNS),
            counts,
            ago(max(0.0, (job.ended_s or now) - job.since_s)),
            printable(", ".join(job.nodes) if len(job.nodes) <= 3 else f"{len(job.nodes)} nodes"),
        )
    return table


def _event(event: Event) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event.at_s))
    return Text.assemble((f"{when}  ", "dim"), (printable(event.text), _EVENT_STYLES.get(event.kind, "")))


def _table(*headings: str | tuple[str, bool]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        name, right = heading if isinstance(heading, tuple) else (heading, False)
        table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    return table


def spark(shares: Sequence[float | None]) -> str:
    """Shares of 1 as a line of blocks; nothing where there is no value."""
    top = len(SPARKS) - 1
    return "".join(" " if share is None else SPARKS[round(min(1.0, max(0.0, share)) * top)] for share in shares)
