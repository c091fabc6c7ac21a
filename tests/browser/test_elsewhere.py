"""How soon the monitor of a hundred imagined nodes is painted, a kernel that is restarted, and the monitor in Voila."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.lab import Lab
from tests.e2e.conftest import _until

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

FIRST_PAINT_LIMIT_MS = 500
TRIES = 6  # others may have the machine at one
ROOT = Path(__file__).parents[2]
IMAGINED = (
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.browser.synthetic import show\nimagined = show(100, 40)"
)


def test_a_hundred_nodes_are_painted_at_once_and_a_restarted_kernel_shows_them_again(lab: Lab) -> None:
    lab.write("imagined.ipynb", IMAGINED, "imagined", "1 + 1")
    notebook = lab.open("imagined.ipynb", 1600, 1100)
    try:
        notebook.run(0)
        took = []
        while len(took) < TRIES and min(took, default=FIRST_PAINT_LIMIT_MS + 1) > FIRST_PAINT_LIMIT_MS:
            notebook.page.evaluate(FIRST_PAINT)
            notebook.run(1)
            took.append(_until(lambda: notebook.page.evaluate("window.painted"), "it is painted"))
        print(f"painted after {took} ms")
        assert min(took) <= FIRST_PAINT_LIMIT_MS
        rows = notebook.monitor.locator(".kos-row.kos-node")
        expect(rows.first).to_be_visible()
        assert rows.count() < 40, "only what is in sight is in the document"
        notebook.picture("hundred", notebook.monitor)
        notebook.restart()
        assert "2" in notebook.run(2).inner_text()
        expect(notebook.page.locator(".kos-still").last).to_be_visible()
        notebook.run(0)
        notebook.run(1)
        expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    finally:
        notebook.close()


# From the key that runs the cell to the frame in which the nodes stand.
FIRST_PAINT = """() => {
  document.querySelectorAll(".kos-monitor").forEach((old) => old.remove());
  window.painted = null;
  const pressed = (event) => {
    if (event.key !== "Enter") return;
    document.removeEventListener("keydown", pressed, true);
    const begun = performance.now();
    const look = () => {
      if (!document.querySelector(".kos-monitor .kos-row.kos-node")) return requestAnimationFrame(look);
      requestAnimationFrame(() => (window.painted = Math.round(performance.now() - begun)));
    };
    requestAnimationFrame(look);
  };
  document.addEventListener("keydown", pressed, true);
}"""


def test_voila_shows_the_same_notebook(lab: Lab) -> None:
    lab.write("app.ipynb", "%load_ext kos_kernel", "%kos monitor")
    page = lab.page("voila/render/app.ipynb", 1000, 900)
    try:
        monitor = page.locator(".kos-monitor").first
        expect(monitor.locator(".kos-row.kos-node").first).to_be_visible()
        expect(monitor.locator(".kos-live")).to_have_text("live")
        before = monitor.get_attribute("data-at")
        _until(lambda: monitor.get_attribute("data-at") != before, "it is live")
        expect(page.locator(".kos-still").first).to_be_hidden()
        page.screenshot(path=lab.pictures / "voila.png")
        monitor.locator(".kos-row.kos-node").first.click()
        expect(page.locator("dialog[open] figure").first).to_be_visible()
    finally:
        page.close()
