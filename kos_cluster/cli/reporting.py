"""`kos report FILE.html`: what ran where and when, as one file; and where profiles are taken."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.errors import UsageError
from kos_cluster.services import report


def profile_(parsed: argparse.Namespace, console: Console) -> int:
    """Only cells are sampled."""
    raise UsageError(
        "A profile is taken of a notebook's cell.",
        "Write '%%kos profile' over a cell that submits work and waits for it.",
    )


def report_(parsed: argparse.Namespace, console: Console) -> int:
    """Ask the nodes what they remember, and write it."""
    path = Path(parsed.file)
    cluster = kos.connect(parsed.cluster)
    listed = {job.job: job for job in cluster.jobs()}  # the oldest first
    known = [*(job for job in cluster.remembered_jobs() if job not in listed), *listed]
    stories = {job: cluster.stories(job) for job in known[-report.JOBS_LIMIT :]}
    jobs = [listed.get(job) or report.job_of(job, told) for job, told in stories.items() if job in listed or told]
    left_out = max(0, len(known) - report.JOBS_LIMIT)
    report.write(path, report.page(cluster.name, cluster.nodes(), jobs, stories, time.time(), left_out))
    tasks = sum(map(len, stories.values()))
    console.answer(f"{path} tells of {len(jobs)} jobs and {tasks} tasks. Open it in a browser.")
    return 0
