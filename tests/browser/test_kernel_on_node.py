"""A kernel on a node, used from a real JupyterLab as if it were local: the tests follow each other on one notebook."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kos_cluster.home import ClusterHome, Home
from tests.browser.lab import Lab, Notebook, until
from tests.kernel.laptop import ASLEEP

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

SHOWN = 300  # lines, while the laptop sleeps
DEATH_TIMEOUT_S = 60.0  # for the cluster to hold a node to be dead, Jupyter to see it, and a kernel to start
WHERE, LONG, SLEPT, KEPT = range(4)
CELLS = (
    "import os, pathlib, time\nkept = 1\nprint('on', os.environ['KOS_NODE'], os.getpid())",
    "print('begun', flush=True)\ntime.sleep(600)",
    "print('before', flush=True)\nwhile not pathlib.Path('go').exists():\n    time.sleep(0.01)\n"
    f"for n in range({SHOWN}):\n    print('line', n, flush=True)\npathlib.Path('done').touch()",
    "print('kept' in globals())",
)


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> Iterator[Notebook]:
    lab.write("remote.ipynb", *CELLS, kernel="kos-remote")
    opened = lab.open("remote.ipynb")
    yield opened
    opened.close()
    lab.machine.ok("up")  # the node that was killed


def place(notebook: Notebook) -> tuple[str, int]:
    """The node that the kernel is on, and its process."""
    found = re.search(r"on (node\d) (\d+)", notebook.run(WHERE).inner_text())
    assert found
    return found[1], int(found[2])


def kernels(lab: Lab) -> list[str]:
    """The ids of the kernels that run on nodes."""
    return [job["job"] for job in lab.machine.json("ps") if job["name"].startswith("kernel of ") and job["running"]]


def test_it_starts_on_a_node_and_runs_a_cell(notebook: Notebook, lab: Lab) -> None:
    expect(notebook.page.locator(".jp-KernelName").first).to_contain_text("1 core on a node")
    node, pid = place(notebook)
    daemon = ClusterHome(Home(lab.machine.home), "local").ready(node)
    assert daemon is not None and daemon.pid in [parent.pid for parent in psutil.Process(pid).parents()]
    assert lab.server.pid not in [parent.pid for parent in psutil.Process(pid).parents()]
    assert len(kernels(lab)) == 1


def test_an_interrupt_by_the_button_ends_the_cell(notebook: Notebook) -> None:
    cell = notebook.run(LONG, wait=False)
    expect(cell).to_contain_text("begun")
    notebook.press("interrupt")
    expect(cell).to_contain_text("KeyboardInterrupt")
    assert "True" in notebook.run(KEPT).inner_text()


def test_what_a_cell_shows_while_the_laptop_sleeps_is_there_when_it_wakes(notebook: Notebook, lab: Lab) -> None:
    work: Path = lab.machine.work
    cell = notebook.run(SLEPT, wait=False)
    expect(cell).to_contain_text("before")
    os.kill(lab.server.pid, signal.SIGUSR2)
    until((work / ASLEEP).exists, "the laptop sleeps")
    (work / "go").touch()
    until((work / "done").exists, "the cell has ended there")
    assert "line 0" not in cell.inner_text() and "[*]" in cell.inner_text()
    os.kill(lab.server.pid, signal.SIGUSR2)
    expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    assert re.findall(r"line (\d+)", cell.inner_text()) == [str(n) for n in range(SHOWN)]
    assert "True" in notebook.run(KEPT).inner_text()


def test_a_restart_by_the_button_gives_a_new_kernel_and_ends_the_old(notebook: Notebook, lab: Lab) -> None:
    _, pid = place(notebook)
    notebook.restart()
    assert "False" in notebook.run(KEPT).inner_text()
    until(lambda: not psutil.pid_exists(pid), "the old one has ended")
    assert len(kernels(lab)) == 1


def test_when_its_node_is_killed_the_user_is_told_and_it_starts_elsewhere(notebook: Notebook, lab: Lab) -> None:
    node, pid = place(notebook)
    cell = notebook.run(LONG, wait=False)
    expect(cell).to_contain_text("begun")
    daemon = ClusterHome(Home(lab.machine.home), "local").ready(node)
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    told = notebook.page.locator(".jp-Dialog")
    expect(told).to_contain_text("appears to have died. It will restart automatically.", timeout=DEATH_TIMEOUT_S * 1000)
    notebook.picture("remote-died")
    notebook.accept()
    until(lambda: lab.server.log.read_text().count("runs on node ") == 3, "a third one is started")
    notebook.until_idle()
    expect(cell.locator(".jp-InputPrompt")).not_to_have_text("[*]:")
    words = notebook.run(KEPT).inner_text()
    assert f"without the variables of the last, which ran on node {node}: the node is dead." in words
    assert "False" in words and not psutil.pid_exists(pid)
    assert place(notebook)[0] != node
    assert f"has died, which ran on node {node}: the node is dead." in lab.server.log.read_text()


def test_shutting_down_by_the_menu_ends_it(notebook: Notebook, lab: Lab) -> None:
    _, pid = place(notebook)
    notebook.page.get_by_role("menuitem", name="Kernel", exact=True).click()
    notebook.page.get_by_role("menuitem", name="Shut Down Kernel", exact=True).click()
    expect(notebook.page.locator(".jp-KernelName").first).to_contain_text("No Kernel")
    until(lambda: not psutil.pid_exists(pid), "it has ended")
    until(lambda: not kernels(lab), "its slot is free")
