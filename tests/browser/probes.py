"""What is asked of the page itself: how long its frames last, when it has painted, and what does not fit in it.

Each is a function in JavaScript, for `Page.evaluate`. Rules: times are in milliseconds. Others may have the machine
while one is taken, so what is slow itself is what is slow most times: `runs` takes a few, and more while most are.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

RUNS = 3
RUNS_LIMIT = 10


def runs(taken: Callable[[], Any], lasted_ms: Callable[[Any], float], limit_ms: float) -> list[Any]:
    """So many runs, and up to `RUNS_LIMIT` while their median is over the limit."""
    found = [taken() for _ in range(RUNS)]
    while len(found) < RUNS_LIMIT and median(map(lasted_ms, found)) > limit_ms:
        found.append(taken())
    return found


def told(frames: list[dict[str, float]]) -> str:
    """The frames of some runs, for people."""
    return "; ".join(f"{run['count']} frames of {run['mean']:.1f} ms, at most {run['most']:.1f} ms" for run in frames)


# The times from one frame to the next, until `step(now)` says that it is enough.
_FRAMES = """
  const frames = async (step) => {
    const gaps = [];
    let last = performance.now();
    await new Promise((done) => {
      const next = (now) => {
        gaps.push(now - last);
        last = now;
        step(now) ? requestAnimationFrame(next) : done();
      };
      requestAnimationFrame(next);
    });
    gaps.shift();
    return { count: gaps.length, most: Math.max(...gaps), mean: gaps.reduce((a, b) => a + b) / gaps.length };
  };
"""

# Scrolls through the tasks for 1.2 s: to another place at each frame, then with rests in which rows are filled.
SCROLL = f"""async () => {{
  {_FRAMES}
  const list = document.querySelector(".kos-tasks .kos-list");
  const begun = performance.now();
  const tasks = new Set();
  let rows = 0;
  let moves = 0;
  const found = await frames((now) => {{
    const shown = [...list.querySelectorAll(".kos-row")];
    rows = Math.max(rows, shown.length);
    for (const row of shown) if (row.dataset.task) tasks.add(row.dataset.task);
    moves += 1;
    if (now < begun + 400 || moves % 15 === 0) list.scrollTop = (moves * 7919 * 30) % list.scrollHeight;
    return now < begun + 1200;
  }});
  return {{ ...found, rows, filled: tasks.size }};
}}"""

# Until news has come twice, and been drawn.
CHANGES = f"""async (monitor) => {{
  {_FRAMES}
  const list = monitor.querySelector(".kos-row.kos-node").closest(".kos-list");
  const alive = () => [...list.querySelectorAll(".kos-row[data-state=alive]")];
  const texts = () => new Map(alive().map((row) => [row.dataset.node, row.textContent]));
  const before = texts();
  let at = monitor.dataset.at;
  let news = 0;
  let after = 3;
  const found = await frames(() => {{
    if (monitor.dataset.at !== at) news += 1;
    at = monitor.dataset.at;
    return news < 2 || after-- > 0;
  }});
  const changed = [...texts()].filter(([node, text]) => before.get(node) !== text).length;
  return {{ ...found, rows: before.size, changed }};
}}"""

# From the key that runs a cell to the frame after that in which the nodes stand: `window.painted`.
FIRST_PAINT = """() => {
  const before = new Set(document.querySelectorAll(".kos-monitor"));
  window.painted = null;
  const pressed = (event) => {
    if (event.key !== "Enter") return;
    document.removeEventListener("keydown", pressed, true);
    const begun = performance.now();
    const look = () => {
      const fresh = [...document.querySelectorAll(".kos-monitor")].find((each) => !before.has(each));
      if (!fresh?.querySelector(".kos-row.kos-node")) return requestAnimationFrame(look);
      requestAnimationFrame(() => (window.painted = Math.round(performance.now() - begun)));
    };
    requestAnimationFrame(look);
  };
  document.addEventListener("keydown", pressed, true);
}"""
OWN_PAINT = "performance.getEntriesByName('kos-monitor-painted').at(-1).duration"  # as the front end marks it itself

# Whether each picture of the text is there.
PICTURES = "[...document.querySelectorAll('.jp-RenderedMarkdown img')].map((each) => each.naturalWidth > 0)"

# JupyterLab's body has no height of its own and hides what flows over: axe holds all in it to be hidden.
HIGH_BODY = "document.body.style.minHeight = '100vh'"

STICKING_OUT = """() => [...document.querySelectorAll(".kos-monitor *")]
  .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible")
  .map((e) => e.className)"""

# Figures and badges of the cluster and its nodes that do not stand whole in their cells; columns without a heading.
CUT = """() => {
  const seen = (e) => e.getClientRects().length > 0;
  const over = (e, box) => e.getBoundingClientRect().right > box.getBoundingClientRect().right + 0.5;
  const cut = (e) => over(e, e.closest(".kos-cell, .kos-tile")) || (e.clientWidth && e.scrollWidth > e.clientWidth + 1);
  const parts = ".kos-node :is(.kos-figure, .kos-badge, .kos-name, .kos-state), .kos-tile :is(b, span)";
  return [...document.querySelectorAll(".kos-monitor")].flatMap((monitor) => {
    const columns = [...monitor.querySelector(".kos-row.kos-node").children].filter(seen);
    const headings = [...monitor.querySelectorAll(".kos-head.kos-node span")].filter(seen);
    const bare = headings.length && headings.length !== columns.length ? [`${headings.length} headings`] : [];
    return [...bare, ...[...monitor.querySelectorAll(parts)].filter(seen).filter(cut).map((e) => e.textContent)];
  });
}"""

# Until nothing fades in or out any more, since a text that is half there has no contrast; what moves for ever may.
SETTLED = """() => Promise.allSettled(document.getAnimations()
  .filter((each) => each.effect.getComputedTiming().iterations !== Infinity)
  .map((each) => each.finished)).then(() => null)"""
