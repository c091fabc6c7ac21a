"""The model as Prometheus metrics; docs/monitor.md lists them.

Theory of operation. A collector of `prometheus_client`: each scrape takes a sample, unless the last one is younger than
`FRESH_S`, and reads the metrics from the model. So nothing is done while nobody scrapes.

Rules: names and labels are stable once released. What is not known is left out, not told as zero. Labels are names of
nodes and kinds, never of jobs or users, whose number has no bound.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kos_cluster.core.records import MemberState
from kos_cluster.services.monitor.changes import Kind
from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.sampler import Sampler
from kos_cluster.services.monitor.snapshot import CANCELLED, DONE, FAILED, GONE, RUNNING, NodeSight

FRESH_S = 0.9  # a sample that is younger is told again
NODE_GAUGES: tuple[tuple[str, str, Callable[[NodeSight], float | None]], ...] = (
    ("kos_node_slots", "Slots of the node.", lambda node: node.slots),
    ("kos_node_slots_busy", "Slots that work.", lambda node: node.load.running),
    ("kos_node_tasks_queued", "Tasks that wait at the node.", lambda node: node.load.queued),
    ("kos_node_cpu_ratio", "CPU in use on the node's machine, of 1.", lambda node: node.cpu_share),
    ("kos_node_memory_ratio", "Memory in use on the node's machine, of 1.", lambda node: node.memory_share),
    (
        "kos_node_memory_available_bytes",
        "Memory that is left on the node's machine.",
        lambda node: node.load.memory_available_bytes,
    ),
    (
        "kos_node_network_received_bytes_per_second",
        "What the node's machine takes in from the network.",
        lambda node: node.received_bytes_per_s,
    ),
    (
        "kos_node_network_sent_bytes_per_second",
        "What the node's machine sends into the network.",
        lambda node: node.sent_bytes_per_s,
    ),
    ("kos_node_load_age_seconds", "How old these figures of the node are.", lambda node: node.load_age_s),
)
STATES = (MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD)


class ClusterCollector(Collector):
    """Metrics of one cluster. Safe to be scraped by several at once."""

    def __init__(self, sampler: Sampler, clock: Callable[[], float] = time.monotonic) -> None:
        self._sampler = sampler
        self._model = Model()
        self._clock = clock
        self._sampled_s = float("-inf")
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if self._clock() - self._sampled_s > FRESH_S:
                self._model.handle(self._sampler.sample())
                self._sampled_s = self._clock()
            return list(metrics(self._model))

    def describe(self) -> Iterable[Metric]:
        return []  # or registering would scrape


def metrics(model: Model) -> Iterator[Metric]:
    """All metrics of a model. Of a cluster that does not answer only that, and what is counted."""
    yield _gauge("kos_up", "1 when a node of the cluster answers.", 0 if model.trouble else 1)
    yield _by(
        "kos_events_total", "Events that were seen.", "kind", {str(kind): model.counted[kind] for kind in Kind}, True
    )
    ended = CounterMetricFamily("kos_tasks_ended", "Tasks that were seen to end.")
    ended.add_metric([], model.ended_tasks)
    yield ended
    if model.trouble:
        return
    totals = model.totals
    yield _by("kos_nodes", "Nodes by state.", "state", _counted((str(node.state) for node in model.nodes), STATES))
    yield _gauge("kos_slots", "Slots of all nodes that are alive.", totals.slots)
    yield _gauge("kos_slots_busy", "Slots that work.", totals.busy)
    yield _gauge("kos_voters", "Nodes that decide.", sum(node.voter for node in model.nodes))
    yield _gauge("kos_nodes_drained", "Nodes that are given no more work.", sum(node.drained for node in model.nodes))
    states = _counted((job.state for job in model.jobs.values()), (RUNNING, DONE, FAILED, CANCELLED, GONE))
    yield _by("kos_jobs", "Jobs that are known, by state.", "state", states)
    tasks = {"waiting": totals.waiting, "running": totals.running, "done": totals.done, "failed": totals.failed}
    yield _by("kos_tasks", "Tasks of the jobs that are known, by state; cancelled is failed.", "state", tasks)
    yield _gauge("kos_tasks_rerun", "Tasks of the jobs that are known that were lost and rerun.", totals.reruns)
    yield from _of_nodes(model)


def _of_nodes(model: Model) -> Iterator[Metric]:
    up = {node.name: int(node.up) for node in model.nodes}
    yield _by("kos_node_up", "1 when the node is alive or only suspected.", "node", up)
    coordinator = {node.name: int(node.coordinator) for node in model.nodes}
    yield _by("kos_node_coordinator", "1 for the node that coordinates.", "node", coordinator)
    living = [node for node in model.nodes if node.up]
    for name, text, figure in NODE_GAUGES:
        values = {node.name: value for node in living if (value := figure(node)) is not None}
        if values:
            yield _by(name, text, "node", values)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float], counter: bool = False) -> Metric:
    family: GaugeMetricFamily | CounterMetricFamily
    if counter:
        family = CounterMetricFamily(name.removesuffix("_total"), text, labels=[label])
    else:
        family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counted(found: Iterable[str], all_: Iterable[str]) -> dict[str, float]:
    """How often each occurs, also those that do not."""
    counts = Counter(found)
    return {str(each): counts[str(each)] for each in all_}
