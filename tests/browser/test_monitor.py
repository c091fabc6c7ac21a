"""The monitor as a user sees it: in JupyterLab, in a headless Chromium, on a cluster of three nodes.

The tests share one notebook, whose cells stand in `watching`, and each leaves the monitor as it found it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.browser import looking, probes
from tests.browser.lab import Notebook, until
from tests.browser.watching import CELL, CELLS, MANY, MONITOR, SLOW, move, row

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

FRAME_LIMIT_MS = 100
FIRST_PAINT_LIMIT_MS = 500
CORE_SHARE_LIMIT = 0.02
LEGIBLE_LEAST = 15  # texts whose contrast is judged; a dialog has the fewest
TABS_LIMIT = 20  # buttons of jobs that are in sight


def test_it_shows_the_nodes_and_follows_the_work(notebook: Notebook) -> None:
    for name in ("node1", "node2", "node3"):
        expect(row(notebook, "node", node=name, state="alive")).to_have_count(1)
    expect(notebook.monitor.locator(".kos-badge.coordinator")).to_have_count(1)
    expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    assert "twice 42" in notebook.run(CELL).inner_text()
    expect(row(notebook, "job", state="done").first).to_be_visible()
    expect(row(notebook, "event", kind="started").first).to_be_visible()


def test_the_figures_of_the_cluster_and_of_each_node_move(notebook: Notebook) -> None:
    """Their lines go on with each sample; what goes over the network differs from one second to the next."""
    until(lambda: fitted(notebook, 1600), "it is 1600 px wide")  # there is room for all columns
    notebook.look()
    node = row(notebook, "node", node="node1")
    network = notebook.monitor.locator('.kos-tile[data-key="network"]')
    over_network = {
        network.locator("b"): rf"^{BYTES}/s$",
        network.locator("span").first: rf"^↓ {BYTES} ↑ {BYTES}$",
        node.locator(".kos-network .kos-figure"): rf"^↓ {BYTES}/s ↑ {BYTES}/s$",
    }
    for shown, form in over_network.items():
        expect(shown).to_be_visible()
        expect(shown).to_have_text(re.compile(form))
    lines = [notebook.monitor.locator(f'.kos-tile[data-key="{key}"] .kos-line') for key in MEASURED]
    lines += [node.locator(".kos-measure .kos-line").nth(place) for place in range(2)]
    move([lambda line=line: line.get_attribute("d") for line in lines] + [shown.inner_text for shown in over_network])
    node.click()
    charts = notebook.page.locator("dialog[open] figure")
    expect(charts).to_have_count(4)
    for chart, name in zip(charts.all(), ("CPU", "Memory", "Slots busy", "Network"), strict=True):
        expect(chart.locator("b")).to_have_text(name)
        expect(chart.locator(".kos-line")).to_have_attribute("d", re.compile("^M.*L"))
    expect(charts.last).to_contain_text(re.compile(rf"{BYTES}/s, at most {BYTES}/s"))
    notebook.page.keyboard.press("Escape")
    notebook.page.set_viewport_size({"width": 1280, "height": 1000})


MEASURED = ("busy", "cpu", "memory", "network")
BYTES = r"[\d.]+ (?:B|[KMGT]iB)"


def test_a_hundred_thousand_tasks_are_listed_smoothly(notebook: Notebook) -> None:
    notebook.run(MANY)
    job = notebook.monitor.locator(".kos-row.kos-job", has_text="many")
    expect(job).to_contain_text("100,000", timeout=60_000)
    expect(job).to_have_attribute("data-state", "failed", timeout=90_000)
    job.click()
    expect(row(notebook, "task", task="0", state="done")).to_be_visible()
    scrolled = probes.runs(lambda: notebook.page.evaluate(probes.SCROLL), longest_frame, FRAME_LIMIT_MS)
    print(f"100,000 tasks are scrolled through: {probes.told(scrolled)}")
    assert max(run["rows"] for run in scrolled) < 120, "only what is in sight is in the document"
    assert max(run["filled"] for run in scrolled) > 10, "what is in sight is filled"
    assert median(map(longest_frame, scrolled)) <= FRAME_LIMIT_MS
    notebook.monitor.get_by_label("Search tasks by number").fill("99999")
    expect(row(notebook, "task")).to_have_count(1)
    expect(row(notebook, "task", task="99999", state="done")).to_be_visible()
    notebook.monitor.get_by_label("Search tasks by number").fill("")
    notebook.monitor.locator(".kos-chip[data-state=failed]").click()
    expect(row(notebook, "task")).to_have_count(5)
    row(notebook, "task", task="20007").click()
    expect(notebook.page.locator("dialog[open]")).to_contain_text("ValueError: 20007")
    notebook.picture("tasks")
    notebook.page.keyboard.press("Escape")
    notebook.page.keyboard.press("Escape")
    expect(job).to_be_visible()


def longest_frame(run: dict[str, float]) -> float:
    return run["most"]


def test_it_can_be_reached_by_keyboard_alone(notebook: Notebook) -> None:
    page = notebook.page
    notebook.monitor.get_by_label("Search nodes by name").focus()
    page.keyboard.press("Tab")
    expect(notebook.monitor.get_by_role("grid", name="Nodes")).to_be_focused()
    page.keyboard.press("Home")
    expect(row(notebook, "node", node="node1", active="true")).to_have_count(1)
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
    jobs = notebook.monitor.get_by_label("Show jobs")
    for state, shown in (("failed", True), ("running", False), ("ended", True), ("", True)):
        jobs.select_option(state)
        expect(notebook.monitor.locator(".kos-row.kos-job", has_text="many")).to_have_count(int(shown))


def test_draining_is_asked_about_and_undone(notebook: Notebook) -> None:
    page = notebook.page
    for asked, button, drained in (("Drain…", "Drain node3", 1), ("Let it work again", None, 0)):
        row(notebook, "node", node="node3").click()
        page.get_by_role("button", name=asked).click()
        if button is not None:
            expect(page.locator("dialog[open]")).to_contain_text("no more work")
            page.get_by_role("button", name=button).click()
        expect(notebook.monitor.locator(".kos-badge.drained")).to_have_count(drained)


def test_a_task_and_a_job_are_cancelled_by_a_click_while_their_cell_runs(notebook: Notebook) -> None:
    cell = notebook.run(SLOW, wait=False)
    job = notebook.monitor.locator(".kos-row.kos-job", has_text="slow").first
    expect(job).to_contain_text("0 / 9")
    job.get_by_role("button", name=re.compile("^Story of slow")).click()
    expect(notebook.page.locator("dialog[open]")).to_contain_text("Attempt 1")
    notebook.page.keyboard.press("Escape")
    job.click()
    row(notebook, "task", task="8").get_by_role("button", name="Cancel task 8").click()
    expect(row(notebook, "task", task="8", state="cancelled")).to_be_visible()
    expect(row(notebook, "task", task="0")).not_to_have_attribute("data-state", "cancelled")
    expect(notebook.monitor.get_by_role("grid", name="Tasks")).to_be_focused()
    notebook.page.keyboard.press("Escape")
    job.get_by_role("button", name=re.compile("^Cancel slow")).click()
    expect(cell).to_contain_text("CancelledError")
    expect(job).to_have_attribute("data-state", "cancelled")


def test_a_job_is_read_about_and_cancelled_by_keyboard_alone(notebook: Notebook) -> None:
    page = notebook.page
    cell = notebook.run(SLOW, wait=False)
    job = notebook.monitor.locator(".kos-row.kos-job[data-state=running]", has_text="slow")
    expect(job).to_contain_text("0 / 9")
    notebook.monitor.get_by_role("grid", name="Jobs").focus()
    story = job.get_by_role("button", name=re.compile("^Story of slow"))
    tab_to(notebook, story)
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open]")).to_contain_text("Attempt 1")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(story).to_be_focused()
    tab_to(notebook, job.get_by_role("button", name=re.compile("^Cancel slow")))
    page.keyboard.press("Enter")
    expect(cell).to_contain_text("CancelledError")
    expect(job).to_have_count(0)
    expect(notebook.monitor.get_by_role("grid", name="Jobs")).to_be_focused()


def tab_to(notebook: Notebook, wanted: Any) -> None:
    """Go from one to the next by Tab until this has the focus."""
    for _ in range(TABS_LIMIT):
        notebook.page.keyboard.press("Tab")
        if wanted.evaluate("each => each === document.activeElement"):
            return
    raise AssertionError(f"{TABS_LIMIT} Tabs do not lead there")


THEMES = [("light", "true"), ("dark", "false")]


def fitted(notebook: Notebook, width: int) -> bool:
    """Whether the monitor itself is that wide; if not, the window is changed by what is missing."""
    window, box = notebook.page.viewport_size, notebook.monitor.bounding_box()
    assert window is not None and box is not None
    missing = width - round(box["width"])
    if missing:
        notebook.page.set_viewport_size({"width": window["width"] + missing, "height": 1400})
    return not missing


def assert_accessible(notebook: Notebook, cell: int = MONITOR) -> None:
    """Of the monitor that this cell shows, with its dialog: contrast, roles and names."""
    from axe_playwright_python.sync_playwright import Axe

    notebook.page.evaluate(probes.HIGH_BODY)
    notebook.page.evaluate(probes.SETTLED)
    shown = f"[data-windowed-list-index='{cell}'] .kos-monitor"
    found = Axe().run(notebook.page, context=shown, options={"resultTypes": ["violations", "passes"]})
    assert found.violations_count == 0, found.generate_report()
    legible = [each for rule in found.response["passes"] if rule["id"] == "color-contrast" for each in rule["nodes"]]
    assert len(legible) >= LEGIBLE_LEAST, "it took the texts to be hidden"


@pytest.mark.parametrize(("theme", "light"), THEMES)
def test_contrast_and_roles_hold_in_both_themes_and_at_every_width(notebook: Notebook, theme: str, light: str) -> None:
    page = notebook.page
    page.evaluate(f"document.body.dataset.jpThemeLight = '{light}'")
    expect(notebook.monitor).to_have_attribute("data-theme", theme)
    try:
        for width in (1600, 1000, 400):
            until(lambda now=width: fitted(notebook, now), f"it is {width} px wide")
            broad = width > 1200
            until(lambda now=broad: ("broad" in (notebook.monitor.get_attribute("class") or "")) == now, "it fits")
            wide = page.evaluate(probes.STICKING_OUT)
            assert not wide, f"at {width} px these stick out: {wide}"
            assert page.evaluate(probes.CUT) == [], f"at {width} px this is cut off, or has no heading"
            assert_accessible(notebook)
            notebook.picture(f"monitor-{theme}-{width}", notebook.monitor)
        row(notebook, "node", node="node1").click()
        expect(page.locator("dialog[open] figure")).to_have_count(4)
        assert_accessible(notebook)
        page.keyboard.press("Escape")
    finally:
        page.evaluate("document.body.dataset.jpThemeLight = 'true'")
        page.set_viewport_size({"width": 1280, "height": 1000})


def closed(notebook: Notebook) -> AbstractContextManager[None]:
    return looking.closed(notebook, MONITOR, CELLS[MONITOR])


def scrolled_away(notebook: Notebook) -> AbstractContextManager[None]:
    return looking.scrolled_away(notebook, CELL)


@pytest.mark.parametrize("away", [scrolled_away, looking.in_a_hidden_tab, closed])
def test_nothing_is_sampled_while_nobody_looks(
    notebook: Notebook, tmp_path: Path, away: Callable[[Notebook], AbstractContextManager[None]]
) -> None:
    samples = looking.Samples(tmp_path / "samples")
    notebook.write(SLOW, samples.noting)
    notebook.run(SLOW)
    notebook.look()
    samples.go_on()
    with away(notebook):
        expect(notebook.page.locator(".kos-live[data-life=live]")).to_have_count(0)
        samples.stop(notebook)
    expect(notebook.monitor.locator(".kos-live")).to_have_text("live")
    samples.go_on()


def test_an_engine_is_listed_and_its_dashboard_opened_through_the_nodes_port(notebook: Notebook) -> None:
    expect(notebook.monitor.locator(".kos-pane-engines")).to_be_hidden()
    notebook.write(SLOW, ENGINE)
    notebook.run(SLOW)
    notebook.look()
    engine = notebook.monitor.locator(".kos-engine[data-engine=dask][data-state=serving]")
    expect(engine).to_contain_text("2 workers · 1 running, 3 waiting · 5.0 MiB held · head on node1")
    with notebook.page.context.expect_page() as opened:
        engine.get_by_role("button", name="Dashboard of dask").click()
    expect(opened.value.get_by_text("the engine itself, at /status")).to_be_visible()
    opened.value.close()
    expect(engine.get_by_role("link")).to_have_attribute("href", re.compile("^http://127.0.0.1:"))
    expect(engine.get_by_text("It asks for this token")).to_be_hidden()

    other = notebook.monitor.locator(".kos-engine[data-engine=ray]")
    with notebook.page.context.expect_page() as opened:
        other.get_by_role("button", name="Dashboard of ray").click()
    expect(opened.value.get_by_text(re.compile("the engine itself, at /$"))).to_be_visible()
    opened.value.close()
    said = notebook.cell(SLOW).locator(".jp-OutputArea").inner_text()
    token = said.rpartition("the token is ")[2].split()[0]
    expect(other.get_by_text(f"It asks for this token: {token}")).to_be_visible()
    assert_accessible(notebook)
    notebook.picture("engines", notebook.monitor)
    notebook.write(SLOW, ENDED)
    notebook.run(SLOW)
    notebook.look()
    expect(notebook.monitor.locator(".kos-pane-engines")).to_be_hidden()


ENGINE = """import http.server, threading, msgspec
from kos_cluster.services.engines.engine import Address
from kos_cluster.services.engines.spec import Record, State
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'<h1>the engine itself, at {self.path}</h1>'.encode())
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Page)
threading.Thread(target=server.serve_forever, daemon=True).start()
supervisor = cluster.detach(time.sleep, [600])
record = Record(name='dask', kind='dask', id='0' * 16, job=supervisor.id, state=State.SERVING, wanted=2, cpus=1,
    memory_bytes=0, restarts_left=0, plaintext=False, since_s=time.time(), node='node1', workers=2, waiting=3,
    running=1, held_bytes=5 << 20, address=Address('tls://127.0.0.1:1', server.server_port))
ray = msgspec.structs.replace(record, name='ray', kind='ray', id='1' * 16)
for each in (record, ray):
    cluster.register('engine.' + each.name).set(msgspec.json.encode(each).decode())
print('the token is', cluster.engine_keys(ray.id, '127.0.0.1').secret)"""
ENDED = """for each in (record, ray):
    cluster.register('engine.' + each.name).set(None)
supervisor.cancel()
server.shutdown()"""


def test_a_listing_is_a_table_and_a_profile_a_flame_graph(notebook: Notebook) -> None:
    notebook.write(CELL, "%kos nodes")
    expect(notebook.run(CELL).locator("td", has_text="node3")).to_be_visible()
    notebook.write(SLOW, PROFILED)
    graph = notebook.run(SLOW).get_by_role("img", name="Flame graph")
    for function in ("fit", "slope", "loss"):
        expect(graph.locator("text", has_text=re.compile(rf"^{function} \(")).first).to_be_visible()
    notebook.picture("profile", notebook.cell(SLOW))


PROFILED = """%%kos profile
def loss(weight, n):
    return sum((weight * x - n * x) ** 2 for x in range(2000))
def slope(weight, n):
    return (loss(weight + 1e-6, n) - loss(weight - 1e-6, n)) / 2e-6
def fit(n, weight=0.0):
    for _ in range(60):
        weight -= 1e-11 * slope(weight, n)
    return loss(weight, n)
losses = list(cluster.map(fit, range(6)))"""


def test_completion_is_offered_by_jupyterlab(notebook: Notebook) -> None:
    job = notebook.monitor.locator(".kos-row.kos-job", has_text="many").get_attribute("data-job")
    assert job
    for typed, completed in (
        ("%kos ru", "%kos run"),
        ("%%kos run --distribute --no-r", "%%kos run --distribute --no-redirect"),
        ("%kos run --on n", "%kos run --on node2"),
        (f"%kos story {job[:-3]}", f"%kos story {job}"),
        ("%%kos run --distribute --over CEL", "%%kos run --distribute --over CELSIUS"),
    ):
        complete(notebook, typed, completed)


def complete(notebook: Notebook, typed: str, completed: str) -> None:
    """Have JupyterLab complete the line, and take what it offers.

    Names come late when the cluster is slow to say them.
    """
    editor = notebook.write(SLOW, typed)
    last = completed.split()[-1]
    offered = notebook.page.locator(".jp-Completer-list .jp-Completer-match", has_text=re.compile(rf"^{last}"))

    def is_offered() -> bool:
        if editor.inner_text().strip() != typed:  # the only one there is
            return True
        notebook.page.keyboard.press("Escape")
        editor.click()
        notebook.page.keyboard.press("End")
        notebook.page.keyboard.press("Tab")
        with suppress(playwright.TimeoutError):
            offered.first.wait_for(timeout=2000)
        return bool(offered.count())

    until(is_offered, f"{last} is offered")
    if editor.inner_text().strip() == typed:
        offered.first.click()
    expect(editor).to_have_text(completed)


def test_a_hundred_nodes_are_painted_at_once(notebook: Notebook) -> None:
    notebook.write(SLOW, "from tests.browser.synthetic import show\nimagined = show(100, 200)")
    notebook.run(SLOW)
    notebook.write(CELL, "imagined")
    painted = probes.runs(lambda: paint(notebook), lambda took: took["own"], FIRST_PAINT_LIMIT_MS)
    print("100 nodes stand: " + "; ".join(f"{t['whole']} ms, the front end {t['own']:.0f} ms" for t in painted))
    imagined = notebook.cell(CELL).locator(".kos-monitor")
    rows = imagined.locator(".kos-row.kos-node")
    expect(rows.first).to_be_visible()
    assert rows.count() < 40, "only what is in sight is in the document"
    assert notebook.page.evaluate(probes.CUT) == []
    notebook.picture("hundred", imagined)
    assert median(took["own"] for took in painted) <= FIRST_PAINT_LIMIT_MS
    assert_accessible(notebook, CELL)


def paint(notebook: Notebook) -> dict[str, float]:
    """Show what a cell shows, anew: how long that takes in all, and of it the front end."""
    notebook.page.evaluate(probes.FIRST_PAINT)
    notebook.run(CELL)
    whole = until(lambda: notebook.page.evaluate("window.painted"), "it is painted")
    return {"whole": whole, "own": notebook.page.evaluate(probes.OWN_PAINT)}


def test_while_the_figures_of_a_hundred_nodes_change_no_frame_is_late(notebook: Notebook) -> None:
    """All change once a second, of which each run sees two, but for one at the turn of its wave."""
    imagined = notebook.cell(CELL).locator(".kos-monitor")
    expect(imagined.locator(".kos-live")).to_have_text("live")
    runs = probes.runs(lambda: imagined.evaluate(probes.CHANGES), longest_frame, FRAME_LIMIT_MS)
    print(f"100 nodes change: {probes.told(runs)}")
    for run in runs:
        assert run["rows"] > 5 and run["changed"] > run["rows"] / 2, "what is in sight has changed"
    assert median(map(longest_frame, runs)) <= FRAME_LIMIT_MS


def test_a_monitor_of_a_hundred_nodes_costs_the_kernel_two_percent_of_a_core(notebook: Notebook) -> None:
    """All of it: the question to a node, the model, and sending the news, which the browser takes."""
    notebook.write(SLOW, "from tests.browser.synthetic import cost_s\nprint('costs', round(cost_s(imagined), 5))")
    cost = re.search(r"costs ([\d.]+)", notebook.run(SLOW).inner_text())
    assert cost
    print(f"{float(cost[1]):.2%} of a core at one sample a second")
    assert float(cost[1]) <= CORE_SHARE_LIMIT


def test_a_cluster_that_does_not_answer_is_told_in_the_monitor(notebook: Notebook) -> None:
    imagined = notebook.cell(CELL).locator(".kos-monitor")
    for answers in ("False", "True"):
        notebook.write(SLOW, f"imagined._watch.sampler.answers = {answers}")
        notebook.run(SLOW)
        trouble = imagined.locator(".kos-trouble")
        expect(trouble).to_be_visible(visible=answers == "False")
        expect(trouble).to_have_text("" if answers == "True" else "No node of cluster 'lab' answers. Type 'kos up'.")
        expect(imagined.locator(".kos-row.kos-node").first).to_be_visible()  # as it was last
    notebook.empty(CELL)
