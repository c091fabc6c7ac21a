"""The monitor when its kernel is restarted, a node is killed or the notebook closed; and in Voila.

The last of the folder: from `test_a_killed_node...` on, the cluster has one node less.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.home import ClusterHome, Home
from tests.browser import looking, probes
from tests.browser.lab import Lab, Notebook, saved, until
from tests.browser.watching import CELL, LOAD, MONITOR, NAME, ROOT, SLOW, move, row
from tests.kernel.clusters import add_user

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect


def test_a_restarted_kernel_shows_it_again_and_opens_no_port_for_it(notebook: Notebook) -> None:
    notebook.restart()
    if notebook.monitor.is_visible():  # JupyterLab leaves what it shows
        notebook.look()
        expect(notebook.monitor.locator(".kos-live")).to_contain_text("no news")
    notebook.run(LOAD)
    notebook.write(SLOW, "import os\nprint('process', os.getpid())")
    kernel = re.search(r"process (\d+)", notebook.run(SLOW).inner_text())
    assert kernel
    before = looking.listening(int(kernel[1]))
    notebook.run(MONITOR)
    expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    expect(row(notebook, "node", state="alive")).to_have_count(3)
    move([lambda: notebook.monitor.get_attribute("data-at")])
    assert before, "Jupyter comes to it by its ports"
    assert looking.listening(int(kernel[1])) == before


def test_voila_shows_the_same_notebook(lab: Lab) -> None:
    """The second notebook, as it is in JupyterLab when all its cells have run."""
    for name in ("02_monitor.ipynb", "monitor.png"):
        shutil.copy(ROOT / "notebooks" / name, lab.machine.work)
    opened = lab.open("02_monitor.ipynb")
    try:
        for index in range(opened.page.locator(".jp-Notebook .jp-CodeCell").count()):
            opened.run(index)
        until(lambda: opened.page.evaluate(probes.PICTURES) == [True], "its picture is shown")
        shows_the_second_notebook(opened.page)
    finally:
        opened.close()
    page = lab.page("voila/render/02_monitor.ipynb", 1000, 900)
    try:
        shows_the_second_notebook(page)
        page.screenshot(path=lab.pictures / "voila.png")
        page.locator(".kos-monitor .kos-row.kos-node").first.click()
        expect(page.locator("dialog[open] figure").first).to_be_visible()
    finally:
        page.close()


def shows_the_second_notebook(page: Any) -> None:
    monitor = page.locator(".kos-monitor").first
    monitor.scroll_into_view_if_needed()
    expect(monitor.locator(".kos-row.kos-node[data-state=alive]")).to_have_count(3)
    expect(monitor.locator(".kos-live")).to_have_text("live")
    move([lambda: monitor.get_attribute("data-at")])
    expect(page.locator(".kos-still").first).to_be_hidden()
    steps = monitor.locator(".kos-row.kos-job[data-state=failed]", has_text="steps").first
    expect(steps).to_contain_text("300")
    for shown in ("3 of 300 tasks failed", "failed after 1 attempt on node", "3 of 3 nodes alive; node"):
        expect(page.locator(".jp-OutputArea-output", has_text=shown).first).to_be_visible()


def test_a_killed_node_turns_dead_and_its_work_is_done_elsewhere(notebook: Notebook, lab: Lab, tmp_path: Path) -> None:
    ready = ClusterHome(Home(lab.machine.home), "local").ready("node3")
    assert ready is not None
    go = tmp_path / "go"
    code = (
        f"import os\ndef work(n):\n    while not os.path.exists({str(go)!r}):\n        time.sleep(0.01)\n    return n\n"
        "sum(cluster.map(work, range(9), name='work'))"
    )
    notebook.write(SLOW, code)
    cell = notebook.run(SLOW, wait=False)
    expect(notebook.monitor.locator(".kos-row.kos-job", has_text="work")).to_contain_text("running")
    until(lambda: "3" in notebook.monitor.locator('.kos-tile[data-key="busy"] b').inner_text(), "all three work")
    os.kill(ready.pid, signal.SIGKILL)
    expect(row(notebook, "node", node="node3", state="dead")).to_be_visible()
    expect(row(notebook, "event", kind="dead").first).to_be_visible()
    expect(row(notebook, "event", kind="rerun").first).to_be_visible()
    go.touch()
    expect(cell).to_contain_text("36")
    notebook.picture("killed", notebook.monitor)


def test_a_node_is_removed_only_when_that_is_confirmed(notebook: Notebook) -> None:
    page = notebook.page
    asked = page.locator("dialog[open]")
    for answer, left in (("Back", 1), ("Remove node3", 0)):
        row(notebook, "node", node="node3", state="dead").click()
        page.get_by_role("button", name="Remove…").click()
        expect(asked.locator("h3")).to_have_text("Remove node3 for good?")
        expect(asked).to_contain_text("it must join anew, with a new token")
        asked.get_by_role("button", name=answer, exact=True).click()
        expect(asked).to_have_count(0)
        expect(row(notebook, "node", node="node3")).to_have_count(left)
    expect(row(notebook, "node")).to_have_count(2)


ROLES = {Role.CLIENT: True, Role.OBSERVER: False}  # whether it may cancel


def test_what_a_role_may_not_do_is_not_offered(notebook: Notebook, lab: Lab, tmp_path_factory: Any) -> None:
    shown = "from tests.browser.synthetic import show_to\n"
    for role in ROLES:
        folder = tmp_path_factory.mktemp(role)
        add_user(lab.machine.home, role, folder)
        shown += f"display(show_to({str(folder)!r}))\n"
    notebook.write(CELL, f"rest = cluster.map(time.sleep, [600], name='rest')\n{shown}")
    cell = notebook.run(CELL)
    for place, (role, cancels) in enumerate(ROLES.items()):
        theirs = cell.locator(".kos-monitor").nth(place)
        theirs.scroll_into_view_if_needed()
        expect(theirs).to_contain_text(f", {role}")
        job = theirs.locator(".kos-row.kos-job", has_text="rest")
        expect(job.get_by_role("button", name=re.compile("^Story of"))).to_be_visible()
        expect(job.get_by_role("button", name=re.compile("^Cancel"))).to_be_visible(visible=cancels)
        theirs.locator('.kos-row.kos-node[data-node="node1"]').click()
        expect(theirs.locator("dialog[open] figure").first).to_be_visible()
        assert theirs.locator("dialog[open] button").all_inner_texts() == ["Close"]
        notebook.page.keyboard.press("Escape")
    notebook.look()
    job = notebook.monitor.locator(".kos-row.kos-job", has_text="rest")
    job.get_by_role("button", name=re.compile("^Cancel")).click()
    expect(job).to_have_attribute("data-state", "cancelled")
    notebook.empty(CELL)


def test_a_notebook_that_is_closed_and_opened_again_shows_it_live(notebook: Notebook, lab: Lab) -> None:
    until(lambda: saved_pictures(notebook, lab), "a picture is in the file")
    notebook.close()
    notebook.page = lab.open(NAME).page
    expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    expect(row(notebook, "node", state="alive")).to_have_count(2)
    expect(notebook.page.locator(".kos-still")).to_be_hidden()


def test_what_is_saved_shows_a_picture_when_the_kernel_is_gone(notebook: Notebook, lab: Lab) -> None:
    pictures = until(lambda: saved_pictures(notebook, lab), "a picture is in the file")
    assert "node1" in "".join(pictures[0]["text/plain"])
    expect(notebook.page.locator(".kos-still")).to_be_hidden()
    lab.stop_kernels()
    again = lab.open(NAME)
    try:
        expect(again.page.locator(".kos-still svg")).to_be_visible()
        expect(again.page.locator(".kos-still svg")).to_contain_text("node1")
        expect(again.page.get_by_text("Error displaying widget")).to_be_hidden()
        again.picture("reopened")
    finally:
        again.close()


def saved_pictures(notebook: Notebook, lab: Lab) -> list[dict[str, Any]]:
    """Save, and give the output in the file that has a picture, once it is the monitor's alone and of now."""
    notebook.page.keyboard.press("Control+s")
    bundles = [output.get("data", {}) for output in saved(lab, NAME)]
    pictures = [bundle for bundle in bundles if "image/svg+xml" in bundle]
    # JupyterLab may have saved by itself while there were others, or a node more.
    return pictures if ["2 of 2 nodes" in "".join(each["image/svg+xml"]) for each in pictures] == [True] else []
