"""The documentation is true: its generated parts match the code, and its Python examples run on a real cluster."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys

import pytest

from docs import figures, tables
from docs.markdown import replaced
from kos_cluster.services import demo
from kos_cluster.services.bench.plan import FULL

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
