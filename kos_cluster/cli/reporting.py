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
    jobs = cluster.jobs()
    newest = sorted(jobs, key=lambda job: job.since_s)[-report.JOBS_LIMIT :]
    stories = {job.job: cluster.stories(job.job) for job in newest}
    report.write(path, report.page(cluster.name, cluster.nodes(), jobs, stories, time.time()))
    tasks = sum(map(len, stories.values()))
    console.answer(f"{path} tells of {len(newest)} jobs and {tasks} tasks. Open it in a browser.")
    return 0
