"""What a monitor of a hundred nodes costs the kernel: the model, and the news that it makes.

What it costs in all, with the question to the cluster and the sending, a test in a browser measures, which see.
"""

from __future__ import annotations

import json
import time

from kos_cluster.services.monitor.model import Model
from kos_kernel.dashboard.panes import PANES
from tests.browser.synthetic import snapshot

SAMPLES = 60
CORE_SHARE_LIMIT = 0.02  # of a core, at one sample a second


def test_a_hundred_nodes_cost_two_percent_of_a_core_at_most() -> None:
    model = Model()
    feeds = [pane.Feed(model) for pane in PANES]
    seen = [snapshot(float(second), float(second), 100, 200) for second in range(SAMPLES)]
    for feed in feeds:
        feed.news(True)
    began_s = time.thread_time()
    for each in seen:
        model.handle(each)
        json.dumps([feed.news(False) for feed in feeds])
    share = (time.thread_time() - began_s) / SAMPLES
    print(f"{share:.2%} of a core over {SAMPLES} samples")
    assert share <= CORE_SHARE_LIMIT


def test_what_is_sent_each_second_is_small() -> None:
    model = Model()
    feeds = [pane.Feed(model) for pane in PANES]
    for second in range(200):
        model.handle(snapshot(float(second), float(second), 100, 200))
    full = len(json.dumps([feed.news(True) for feed in feeds]))
    model.handle(snapshot(201.0, 201.0, 100, 200))
    news = len(json.dumps([feed.news(False) for feed in feeds]))
    print(f"{news / 1000:.0f} kB a second, {full / 1000:.0f} kB to whoever begins to look")
    assert full < 400_000
    assert news < 40_000
