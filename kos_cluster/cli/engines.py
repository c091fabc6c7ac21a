"""`kos engine`: Dask or Ray on the cluster's nodes, from start to stop.

Rules: what it prints of an engine is what the engine's record says; nothing of an engine's own packages is loaded here.
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Iterable, Iterator

import msgspec

import kos_cluster as kos
from kos_cluster.cli import sigterm
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, ago, size
from kos_cluster.core.records import JobSummary
from kos_cluster.errors import UnreachableError
from kos_cluster.services.engines import control, dashboards
from kos_cluster.services.engines.heads import told_time
from kos_cluster.services.engines.kinds import engine_of
from kos_cluster.services.engines.spec import Record, State
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.detached import DetachedJob

NOTE_PATIENCE_S = 2.0  # for what is told beside the jobs
NOTED_S = 600.0  # that a trouble which is over is told there
COLUMNS = (
    Column("ENGINE"),
    Column("KIND"),
    Column("STATE"),
    Column("WORKERS", right=True),
    Column("WAITING", right=True),
    Column("RUNNING", right=True),
    Column("HELD", right=True),
    Column("HEAD"),
    Column("SINCE", right=True),
    Column("JOB"),
    Column("WHY"),
)


def engine_start_(parsed: argparse.Namespace, console: Console) -> int:
    """Start an engine."""
    cluster = kos.connect(parsed.cluster)
    spec = control.spec_of(
        cluster,
        parsed.kind,
        name=parsed.name,
        workers=parsed.workers,
        cpus=parsed.cpus,
        memory_bytes=parsed.memory,
        restarts=parsed.restarts,
        plaintext=parsed.allow_plaintext,
    )

    def lasts(job: DetachedJob) -> None:
        console.note(f"kos: job {job.id} starts engine {spec.name!r}: 'kos why {job.id}' says what it waits for.")

    with sigterm.handled(signal.default_int_handler):  # as Ctrl-C, so that nothing is left starting
        record = control.start(cluster, spec, lasts)
    if parsed.json:
        console.json(record)
    else:
        workers = f"{record.workers} worker{'s' * (record.workers != 1)}"
        console.answer(f"Engine {record.name} serves with {workers}; its head is on {record.node}.")
    return 0


def engine_list_(parsed: argparse.Namespace, console: Console) -> int:
    """List the engines."""
    cluster = kos.connect(parsed.cluster)
    records = control.engines(cluster)
    for error in control.unreadable(cluster):
        console.note(f"kos: {error}")
    if parsed.json:
        console.json(records)
    else:
        console.listing(records, COLUMNS, [_row(record, time.time()) for record in records])
    return 0


def engine_status_(parsed: argparse.Namespace, console: Console) -> int:
    """Show how one engine stands."""
    record = control.find(kos.connect(parsed.cluster), parsed.name)
    if parsed.json:
        console.json(record)
    else:
        console.facts(_facts(record), _lines(record))
    return 0


def engine_scale_(parsed: argparse.Namespace, console: Console) -> int:
    """Give an engine another number of workers."""
    record = control.scale(kos.connect(parsed.cluster), parsed.name, parsed.workers)
    console.answer(f"Engine {record.name} has {record.workers} worker{'s' * (record.workers != 1)}.")
    return 0


def engine_stop_(parsed: argparse.Namespace, console: Console) -> int:
    """Stop an engine."""
    record = control.stop(kos.connect(parsed.cluster), parsed.name)
    console.answer(f"Engine {record.name} is stopped.")
    return 0


def engine_dashboard_(parsed: argparse.Namespace, console: Console) -> int:
    """Lead a port of this machine to an engine's dashboard, until it is interrupted or terminated."""
    cluster = kos.connect(parsed.cluster)
    record = control.serving(control.find(cluster, parsed.name))
    ended = threading.Event()
    dashboard = dashboards.opened(cluster, record, parsed.port)
    with dashboard.port, sigterm.handled(lambda *_: ended.set()):
        console.answer(dashboard.address)
        console.note(f"kos: leads to the dashboard of engine {record.name!r} on {record.node}; Ctrl-C ends it.")
        if dashboard.token:
            console.note(f"kos: it asks for this token: {dashboard.token}")
        console.out.flush()
        ended.wait()
    return 0


def note_troubles(cluster: Cluster, jobs: Iterable[JobSummary], console: Console) -> None:
    """Beside a listing of jobs: engines that do not serve, or had trouble a short while ago, with what was lost."""
    if not any(control.is_supervisor(job) for job in jobs):
        return
    try:
        told = control.engines(cluster, NOTE_PATIENCE_S)
    except UnreachableError as error:
        console.note(f"kos: how engines stand cannot be told now: {error.message}")
        return
    for record in told:
        if record.why and (record.state is not State.SERVING or time.time() - record.why_s < NOTED_S):
            console.note(f"kos: engine {record.name} is {record.state}; last trouble: {record.why.rstrip('.')}.")


def _row(record: Record, now: float) -> list[str]:
    return [
        record.name,
        record.kind,
        record.state,
        f"{record.workers}/{record.wanted}",
        *_at_work(record),
        record.node,
        ago(max(0.0, now - record.since_s)),
        record.job,
        record.why,
    ]


def _at_work(record: Record) -> tuple[str, str, str]:
    """Tasks that wait and run, and the results that are held; of an engine that does not serve, nothing."""
    if record.state is not State.SERVING:
        return "-", "-", "-"
    return str(record.waiting), str(record.running), size(record.held_bytes)


def _facts(record: Record) -> dict[str, object]:
    facts: dict[str, object] = msgspec.to_builtins(record)
    return facts


def _lines(record: Record) -> Iterator[str]:
    since = ago(max(0.0, time.time() - record.since_s))
    yield f"Engine {record.name} ({record.kind}) is {record.state}, started {since} ago."
    yield (
        f"Workers: {record.workers} of {record.wanted}, each with {record.cpus} core{'s' * (record.cpus != 1)} and "
        f"{size(record.memory_bytes) if record.memory_bytes else 'no limit of memory'}."
    )
    if record.state is State.SERVING:
        yield f"Head: {record.address.head} on {record.node}."
        yield f"Tasks: {record.waiting} wait, {record.running} run; {size(record.held_bytes)} of results are held."
    elif record.node:
        yield f"Its head was on {record.node}."
    yield f"Supervised by job {record.job}; life {record.life}, {record.restarts_left} restarts left."
    if record.plaintext:
        links = "; ".join(engine_of(record.kind).plaintext) or "nothing"
        yield f"Not encrypted, as --allow-plaintext lets it: {links}."
    if record.until_s:
        yield f"Its certificates end on {told_time(record.until_s)}."
    if record.why:
        yield f"Last trouble, {ago(max(0.0, time.time() - record.why_s))} ago: {record.why.rstrip('.')}."
