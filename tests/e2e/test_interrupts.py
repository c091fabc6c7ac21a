"""Interrupts beyond the first: nobody waits any more, and the cancelling goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.kernels import Kernel

GAPS_S = (0.0, 0.002, 0.005, 0.02)  # between two interrupts, so that the second one comes in different places
RETURNS_WITHIN_S = 4.0  # also when the node that holds the work does not answer


@contextmanager
def stopped(machine: Any, name: str) -> Iterator[None]:
    """The daemon of this node does nothing meanwhile; its workers go on."""
    pid = next(node["pid"] for node in machine.json("nodes") if node["name"] == name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("gap_s", GAPS_S)
def test_two_in_a_row_end_the_command_and_the_remote_program(
    gap_s: float, local: Any, until: Callable[..., Any]
) -> None:
    typed = local.start("run", "--on", "node2", "sh", "-c", "echo $$; exec sleep 300")
    pid = int(typed.stdout.readline())
    typed.send_signal(signal.SIGINT)
    time.sleep(gap_s)
    typed.send_signal(signal.SIGINT)
    _, err = typed.communicate(timeout=20)
    assert typed.returncode == 130
    assert err in ("kos: interrupted.\n", "")  # the second one may come before the sentence
    until(lambda: not runs(pid), "the program is stopped")


def test_nobody_waits_for_a_node_that_does_not_answer(local: Any, until: Callable[..., Any]) -> None:
    typed = local.start("run", "--on", "node2", "sh", "-c", "echo $$; exec sleep 300")
    pid = int(typed.stdout.readline())
    with stopped(local, "node2"):
        began = time.monotonic()
        typed.send_signal(signal.SIGINT)
        typed.send_signal(signal.SIGINT)
        typed.communicate(timeout=20)
        assert time.monotonic() - began < RETURNS_WITHIN_S
        assert typed.returncode == 130
        assert runs(pid), "the node has not heard of it yet"
    until(lambda: not runs(pid), "the program is stopped although nobody waits for it")
    until(lambda: not local.json("ps"), "and its job is over")


@pytest.fixture
def notebook(local: Any) -> Iterator[Kernel]:
    kernel = Kernel({"KOS_HOME": str(local.home)})
    yield kernel
    kernel.stop()


@pytest.mark.parametrize("over", [False, True])
def test_nor_does_a_notebooks_cell(
    over: bool, local: Any, notebook: Kernel, until: Callable[..., Any], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    assert not notebook.run(f"%load_ext kos_kernel\nkept, xs, marks = 'before', [1, 2], {str(marks)!r}").error
    each = "--over xs --out kept " if over else ""
    cell = notebook.start(
        f"%%kos run --distribute {each}--on node2\nimport time\nkept = 'lost'\nwhile True:\n"
        "    open(marks, 'a').write('x')\n    time.sleep(0.01)"
    )
    until(marks.exists, "the cell runs")

    def goes_on() -> bool:
        before = marks.stat().st_size
        time.sleep(0.2)
        return marks.stat().st_size > before

    with stopped(local, "node2"):
        began = time.monotonic()
        notebook.interrupt()
        notebook.interrupt()
        notebook.wait(lambda: cell.idle)
        assert time.monotonic() - began < RETURNS_WITHIN_S
        # The second one may also interrupt the kernel as it shows the first; then there is nothing to see.
        assert cell.error.get("ename", "KeyboardInterrupt") == "KeyboardInterrupt"
        assert goes_on(), "the node has not heard of it yet"
    until(lambda: not goes_on(), "the cell is stopped although nobody waits for it")
    assert notebook.value("kept") == "before"
    assert not notebook.run("%%kos run --distribute\nkept = 'after'").error
    assert notebook.value("kept") == "after"
