"""The monitor as a user sees it: in JupyterLab, in a headless Chromium, on a cluster of three nodes.

The tests share one notebook, whose cells stand below, and each leaves the monitor as it found it.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from kos_cluster.home import ClusterHome, Home
from tests.browser.lab import Lab, Notebook, saved
from tests.e2e.conftest import _until

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

FRAME_LIMIT_MS = 100
SCROLLS = 5
LOAD, MONITOR, MANY, SLOW, CELL = range(5)
CELLS = (
    "%load_ext kos_kernel\nimport time, kos_cluster as kos\ncluster = kos.connect()\nx = 21",
    "%kos monitor",
    "def square(n):\n    if n % 20_000 == 7:\n        raise ValueError(n)\n    return n * n\n"
    "many = cluster.map(square, range(100_000), name='many')\nlen(many.futures)",
    "def slow(n):\n    time.sleep(60)\nlist(cluster.map(slow, range(9), name='slow', retries=3))",
    "%%kos run --distribute\ny = x * 2\nprint('twice', y)",
)


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> Iterator[Notebook]:
    lab.write("watch.ipynb", *CELLS)
    opened = lab.open("watch.ipynb", 1280, 1000)
    opened.run(LOAD)
    opened.run(MONITOR)
    opened.monitor.wait_for()
    yield opened
    opened.close()


def row(notebook: Notebook, of: str, /, **wanted: str) -> Any:
    """The row of a list with these data attributes."""
    marks = "".join(f'[data-{name}="{value}"]' for name, value in wanted.items())
    return notebook.monitor.locator(f".kos-row.kos-{of}{marks}")


def test_it_shows_the_nodes_and_follows_the_work(notebook: Notebook) -> None:
    for name in ("node1", "node2", "node3"):
        expect(row(notebook, "node", node=name, state="alive")).to_have_count(1)
    expect(notebook.monitor.locator(".kos-badge.coordinator")).to_have_count(1)
    expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    assert "twice 42" in notebook.run(CELL).inner_text()
    expect(row(notebook, "job", state="done").first).to_be_visible()
    expect(row(notebook, "event", kind="started").first).to_be_visible()


def test_a_hundred_thousand_tasks_are_listed_smoothly(notebook: Notebook) -> None:
    notebook.run(MANY)
    job = notebook.monitor.locator(".kos-row.kos-job", has_text="many")
    expect(job).to_contain_text("100,000", timeout=60_000)
    _until(lambda: job.get_attribute("data-state") == "failed", "all of them ended", 90)
    job.click()
    expect(row(notebook, "task", task="0", state="done")).to_be_visible()
    # Others have the machine for a moment now and then; a list that is slow itself is slow each time.
    runs = [notebook.page.evaluate(SCROLL) for _ in range(SCROLLS)]
    print([f"{run['count']} frames of {run['mean']:.1f} ms, at most {run['most']:.1f} ms" for run in runs])
    assert max(run["rows"] for run in runs) < 120, "only what is in sight is in the document"
    assert min(run["most"] for run in runs) <= FRAME_LIMIT_MS
    notebook.monitor.get_by_label("Search tasks by number").fill("99999")
    expect(row(notebook, "task")).to_have_count(1)
    expect(row(notebook, "task", task="99999", state="done")).to_be_visible()
    notebook.monitor.get_by_label("Search tasks by number").fill("")
    notebook.monitor.locator(".kos-chip[data-state=failed]").click()
    expect(row(notebook, "task")).to_have_count(5)
    row(notebook, "task", task="20007").click()
    expect(notebook.page.locator("dialog[open]")).to_contain_text("failed")
    notebook.picture("tasks")
    notebook.page.keyboard.press("Escape")
    notebook.page.keyboard.press("Escape")
    expect(job).to_be_visible()


# Scrolls through the list, to another place at each frame; the times from one frame to the next.
SCROLL = """async () => {
  const list = document.querySelector(".kos-tasks .kos-list");
  const gaps = []; let rows = 0; let last = performance.now(); const end = last + 800;
  await new Promise((done) => {
    const step = (now) => {
      gaps.push(now - last); last = now;
      rows = Math.max(rows, list.querySelectorAll(".kos-row").length);
      list.scrollTop = (gaps.length * 7919 * 30) % list.scrollHeight;
      now < end ? requestAnimationFrame(step) : done();
    };
    requestAnimationFrame(step);
  });
  gaps.shift();
  return { count: gaps.length, most: Math.max(...gaps), mean: gaps.reduce((a, b) => a + b) / gaps.length, rows };
}"""


def test_it_can_be_reached_by_keyboard_alone(notebook: Notebook) -> None:
    page = notebook.page
    notebook.monitor.get_by_label("Search nodes by name").focus()
    page.keyboard.press("Tab")
    expect(notebook.monitor.get_by_role("grid", name="Nodes")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(row(notebook, "node", node="node2", active="true")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open] h3")).to_have_text("node2")
    expect(page.locator("dialog[open] button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(notebook.monitor.get_by_role("grid", name="Nodes")).to_be_focused()
    assert notebook.cell(MONITOR).is_visible(), "JupyterLab took the keys for its own"


def test_a_search_finds_nodes_jobs_and_events(notebook: Notebook) -> None:
    for label, words, kind in (
        ("Search nodes", "node3", "node"),
        ("Search jobs", "many", "job"),
        ("Search events", "node1 joined", "event"),
    ):
        box = notebook.monitor.get_by_label(re.compile(f"^{label}"))
        box.fill(words)
        expect(row(notebook, kind)).to_have_count(1)
        box.fill("nothing of that name")
        expect(row(notebook, kind)).to_have_count(0)
        box.fill("")


def test_draining_is_asked_about_and_undone(notebook: Notebook) -> None:
    page = notebook.page
    for asked, button, drained in (("Drain…", "Drain node3", 1), ("Let it work again", None, 0)):
        row(notebook, "node", node="node3").click()
        page.get_by_role("button", name=asked).click()
        if button is not None:
            expect(page.locator("dialog[open]")).to_contain_text("no more work")
            page.get_by_role("button", name=button).click()
        expect(notebook.monitor.locator(".kos-badge.drained")).to_have_count(drained)


def test_a_job_is_cancelled_by_a_click_while_its_cell_runs(notebook: Notebook) -> None:
    cell = notebook.run(SLOW, wait=False)
    job = notebook.monitor.locator(".kos-row.kos-job", has_text="slow").first
    expect(job).to_contain_text("0 / 9")
    job.get_by_role("button", name=re.compile("^Story of slow")).click()
    expect(notebook.page.locator("dialog[open]")).to_contain_text("Attempt 1")
    notebook.page.keyboard.press("Escape")
    job.get_by_role("button", name=re.compile("^Cancel slow")).click()
    expect(cell).to_contain_text("CancelledError")
    expect(job).to_have_attribute("data-state", "cancelled")


STICKING_OUT = """() => [...document.querySelectorAll(".kos-monitor *")]
  .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible")
  .map((e) => e.className)"""
THEMES = [("light", "true"), ("dark", "false")]


@pytest.mark.parametrize(("theme", "light"), THEMES)
def test_contrast_and_roles_hold_in_both_themes_and_at_every_width(notebook: Notebook, theme: str, light: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = notebook.page
    page.evaluate(f"document.body.dataset.jpThemeLight = '{light}'")
    expect(notebook.monitor).to_have_attribute("data-theme", theme)
    try:
        for width in (1600, 1280, 520):
            page.set_viewport_size({"width": width, "height": 1200})
            inner = notebook.monitor.bounding_box()["width"]
            _until(
                lambda now=width: ("broad" in (notebook.monitor.get_attribute("class") or "")) == (now > 1200),
                "it fits",
            )
            wide = page.evaluate(STICKING_OUT)
            assert not wide, f"at {inner} px these stick out: {wide}"
            found = Axe().run(page, context=".kos-monitor")
            assert found.violations_count == 0, found.generate_report()
            notebook.picture(f"monitor-{theme}-{width}", notebook.monitor)
    finally:
        page.evaluate("document.body.dataset.jpThemeLight = 'true'")
        page.set_viewport_size({"width": 1280, "height": 1000})


def test_nothing_is_sampled_while_it_is_out_of_sight(notebook: Notebook) -> None:
    def stands_still() -> bool:
        before = notebook.monitor.get_attribute("data-at")
        notebook.page.wait_for_timeout(1500)  # it would be sampled once a second
        return notebook.monitor.get_attribute("data-at") == before

    assert not stands_still()
    notebook.page.evaluate("document.querySelector('.kos-monitor').style.display = 'none'")
    expect(notebook.monitor.locator(".kos-live")).to_have_text("paused")
    _until(stands_still, "it stops")
    notebook.page.evaluate("document.querySelector('.kos-monitor').style.display = ''")
    expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    _until(lambda: not stands_still(), "it goes on")


def test_completion_is_offered_by_jupyterlab(notebook: Notebook) -> None:
    editor = notebook.write(SLOW, "%kos ru")
    notebook.page.keyboard.press("Tab")
    expect(notebook.page.locator(".jp-Completer-list")).to_contain_text("run")
    notebook.page.keyboard.press("Enter")
    expect(editor).to_have_text("%kos run")


def test_a_killed_node_turns_dead_and_its_work_is_done_elsewhere(notebook: Notebook, lab: Lab) -> None:
    ready = ClusterHome(Home(lab.machine.home), "local").ready("node3")
    assert ready is not None
    code = "def work(n):\n    time.sleep(2)\n    return n\nsum(cluster.map(work, range(9), name='work'))"
    notebook.write(SLOW, code)
    cell = notebook.run(SLOW, wait=False)
    expect(notebook.monitor.locator(".kos-row.kos-job", has_text="work")).to_contain_text("running")
    _until(lambda: "3" in notebook.monitor.locator('.kos-tile[data-key="busy"] b').inner_text(), "all three work")
    os.kill(ready.pid, signal.SIGKILL)
    expect(row(notebook, "node", node="node3", state="dead")).to_be_visible()
    expect(row(notebook, "event", kind="dead").first).to_be_visible()
    expect(row(notebook, "event", kind="rerun").first).to_be_visible()
    expect(cell).to_contain_text("36")
    notebook.picture("killed", notebook.monitor)


def test_what_is_saved_shows_a_picture_when_the_kernel_is_gone(notebook: Notebook, lab: Lab) -> None:
    pictures = _until(lambda: saved_pictures(notebook, lab), "a picture is in the file")
    assert "node1" in "".join(pictures[0]["text/plain"])
    expect(notebook.page.locator(".kos-still")).to_be_hidden()
    lab.stop_kernels()
    again = lab.open("watch.ipynb")
    try:
        expect(again.page.locator(".kos-still svg")).to_be_visible()
        expect(again.page.locator(".kos-still svg")).to_contain_text("node1")
        expect(again.page.get_by_text("Error displaying widget")).to_be_hidden()
        again.picture("reopened")
    finally:
        again.close()


def saved_pictures(notebook: Notebook, lab: Lab) -> list[dict[str, Any]]:
    """Save, and give the outputs in the file that have a picture."""
    notebook.page.keyboard.press("Control+s")
    bundles = [output.get("data", {}) for output in saved(lab, "watch.ipynb")]
    return [bundle for bundle in bundles if "image/svg+xml" in bundle]
