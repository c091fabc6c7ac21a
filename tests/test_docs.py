"""The documentation is true: its generated parts match the code, its figures are of a whole run and judged as it says,
and its Python examples run on a real cluster."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys

import msgspec
import pytest

from docs import figures, tables
from docs.markdown import replaced
from kos_cluster.services import demo
from kos_cluster.services.bench import memory, reports
from kos_cluster.services.bench.figures import SLEEPS, Part, Work, judged
from kos_cluster.services.bench.plan import FULL
from kos_cluster.services.bench.systems import ENTRIES
from tests.services.test_bench import OVERHEAD, WORKS

RUN = """
import doctest, sys
for document in sys.argv[2:]:
    failed, tried = doctest.testfile(document, module_relative=False, optionflags=int(sys.argv[1]))
    assert tried
    if failed:
        sys.exit(1)
"""


@pytest.mark.parametrize("name", tables.PARTS)
def test_generated_parts_match_the_code(name: str) -> None:
    document, make = tables.PARTS[name]
    text = (tables.DOCS / document).read_text()
    assert text == replaced(text, name, make()), f"{document} is old; type: make docs"


def test_the_figures_are_of_whole_works_and_more_than_one_run() -> None:
    report = figures.kept()
    assert report.plan == FULL
    assert all(len(figure.repeats) > 1 for figure in report.figures)


def test_the_figures_are_of_every_system_and_work() -> None:
    """No peer was missing, none broke, and each has all that its set-up does not say that it lacks."""
    report = figures.kept()
    assert (report.skipped, report.failures) == ({}, [])
    works = {**WORKS, Part.OVERHEAD: OVERHEAD, Part.SCALING: [SLEEPS[daemons] for daemons in FULL.daemons]}
    assert {work for part in works.values() for work in part} == set(Work)
    wanted = {(name, work) for name, entry in ENTRIES.items() for part in entry.opens for work in works[part]}
    wanted -= {(name, work) for name, entry in ENTRIES.items() for work in entry.lacks}
    assert {(figure.system, figure.work) for figure in report.figures} == wanted
    assert not [figure.name for figure in moved() if figure.against and not figure.peer]


def moved() -> list[memory.Figure]:
    """The kept run of `kos bench memory`."""
    return msgspec.json.decode(figures.KEPT_MEMORY.read_bytes(), type=reports.Report[memory.Figure]).figures


def not_reached() -> set[str]:
    """What the aims judge so in the kept runs of `kos bench` and of `kos bench memory`."""
    report = figures.kept()
    missed = {str(work) for work in Work if any("NOT reached" in line for line in judged(work, report))}
    return missed | {figure.name for figure in moved() if figure.peer and figure.ratio < figure.aim}


def told_as_not_reached() -> set[str]:
    """What the hand-written table names."""
    document = (tables.DOCS / "benchmarks.md").read_text()
    _, _, after = document.partition("\n### What was not reached\n")
    rows = after.partition("\n### ")[0].partition("\n|---")[2].splitlines()[1:]
    aims = [row.split("|")[1] for row in rows if row.startswith("|")]
    return {re.findall(r"`(\w+)`", aim)[0] for aim in aims}


def test_what_was_not_reached_is_told_and_nothing_else_is() -> None:
    assert told_as_not_reached() == not_reached()


def test_the_python_examples_run_on_a_cluster() -> None:
    """In a process of their own, as a user's script would be."""
    flags = doctest.IGNORE_EXCEPTION_DETAIL | doctest.REPORT_NDIFF
    with demo.temporary_home(), demo.local_cluster(2):
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(flags), *(str(tables.DOCS / name) for name in ("python.md", "dropins.md"))],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
