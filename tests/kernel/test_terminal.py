"""IPython in a real terminal: the magics, completion, and the monitor as text."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.kernel.clusters import cluster_of

IPYTHON = str(Path(sys.executable).with_name("ipython"))
WAIT_S = 30
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>]|\][^\x07]*\x07)")


class Terminal:
    """IPython, as somebody types at it."""

    def __init__(self, home: str, folder: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("KOS_")}
        environ |= {"KOS_HOME": home, "IPYTHONDIR": str(folder), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        words = ["--no-banner", "--no-confirm-exit", "--InteractiveShell.colors=nocolor"]
        self.child: Any = pexpect.spawn(
            IPYTHON, words, env=environ, cwd=str(folder), dimensions=(50, 160), encoding="utf-8", timeout=WAIT_S
        )
        self._count = 1
        self._prompt()

    def run(self, line: str) -> str:
        """Type a line; what is shown until the next prompt."""
        self.child.send(f"{line}\r")
        return self._next()

    def paste(self, cell: str) -> str:
        """Paste a cell of several lines, at once as a terminal does, and end it with empty lines."""
        self.child.send(f"\x1b[200~{cell}\n\x1b[201~\r\r")
        return self._next()

    def _next(self) -> str:
        self._count += 1
        return self._prompt()

    def _prompt(self) -> str:
        self.child.expect_exact(f"In [{self._count}]:")
        return _ESCAPES.sub("", self.child.before)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with cluster_of(2) as home:
        made = Terminal(home, tmp_path_factory.mktemp("ipython"))
        made.run("%load_ext kos_kernel")
        yield made
        made.child.close(force=True)


def test_listings_are_tables_of_text(terminal: Terminal) -> None:
    shown = terminal.run("%kos nodes")
    assert re.search(r"NAME +.*STATE", shown) and re.search(r"node1 .*alive.*\n.*node2 .*alive", shown), shown
    assert "node1" not in terminal.run("nodes = %kos nodes")
    assert "['node1', 'node2']" in terminal.run("[node['name'] for node in nodes]")


def test_a_cell_runs_on_the_cluster_and_its_assignments_return(terminal: Terminal) -> None:
    cell = "%%kos run --distribute\nwhere = __import__('os').environ['KOS_NODE']\nprint(6 * 7000)"
    assert "42000" in terminal.paste(cell)
    assert re.search(r"'node[12]'", terminal.run("where"))


def test_a_script_runs_on_the_cluster(terminal: Terminal) -> None:
    terminal.run("open('script.py', 'w').write('print(1000 + 337)')")
    assert "1337" in terminal.run("%kos run --distribute script.py")


def test_tab_completes_a_command(terminal: Terminal) -> None:
    terminal.child.send("%kos stat\t")
    terminal.child.expect_exact("us")  # what Tab adds is drawn
    assert "2 of 2 nodes alive" in terminal.run("")


def test_a_mistake_is_one_sentence(terminal: Terminal) -> None:
    shown = terminal.run("%kos story nothing")
    assert "No node knows a job or task 'nothing'" in shown and "Traceback" not in shown


def test_the_monitor_is_text(terminal: Terminal) -> None:
    shown = terminal.run("%kos monitor")
    assert "2 of 2" in shown and re.search(r"node1.*\n.*node2", shown), shown
    assert "node2" not in terminal.run("m = %kos monitor")
    assert "node2" in terminal.run("m")
