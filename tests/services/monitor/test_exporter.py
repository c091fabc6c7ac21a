"""The metrics: their names are documented and stay, the dashboard's queries find them, and who may read them."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kos_cluster.cli import metrics
from kos_cluster.cli.main import run
from kos_cluster.core.records import Load, MemberState
from kos_cluster.errors import PortTakenError, UsageError
from kos_cluster.services.monitor.endpoint import Server, application, is_loopback, read_token
from kos_cluster.services.monitor.exporter import ClusterCollector
from kos_cluster.services.monitor.snapshot import Missed, Snapshot
from tests.services.monitor.sights import job, node, snapshot

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-that-is-long-enough"


class Sampler:
    def __init__(self) -> None:
        self.answers = True

    def sample(self) -> Snapshot | Missed:
        dead = node(3, state=MemberState.DEAD, load=Load())
        seen = snapshot(1.0, [node(1), node(2, drained=True), dead], [job(done=3)])
        return seen if self.answers else Missed(2.0, "No node answers.")


@contextmanager
def served(token: str | None = None, sampler: Sampler | None = None) -> Iterator[str]:
    collector = ClusterCollector(sampler or Sampler(), clock=iter(range(10_000)).__next__)  # type: ignore[arg-type]
    with Server("127.0.0.1", 0, application(collector, token)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def read(address: str, token: str = "") -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
        return str(answer.read().decode())


def refusal(address: str, token: str = "") -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        read(address, token)
    with refused.value as error:
        return error.code, error.read().decode()


def values(text: str) -> dict[tuple[str, str], float]:
    """(name, the one label's value) -> value."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def scraped() -> dict[tuple[str, str], float]:
    with served() as address:
        return values(read(f"{address}/metrics"))


def test_the_metrics_say_what_the_cluster_is(scraped: dict[tuple[str, str], float]) -> None:
    assert scraped["kos_up", ""] == 1
    assert [scraped["kos_nodes", state] for state in ("alive", "suspect", "dead")] == [2, 0, 1]
    assert scraped["kos_node_cpu_ratio", "node1"] == 0.5
    assert scraped["kos_node_coordinator", "node1"] == 1
    assert scraped["kos_node_up", "node3"] == 0
    assert ("kos_node_cpu_ratio", "node3") not in scraped, "what is dead has no figures"
    assert [scraped["kos_tasks", state] for state in ("waiting", "running", "done", "failed")] == [5, 2, 3, 0]
    assert scraped["kos_nodes_drained", ""] == 1
    assert scraped["kos_events_total", "joined"] == 2


def test_every_metric_is_documented_and_every_documented_one_exists(scraped: dict[tuple[str, str], float]) -> None:
    told = {name for name, _ in scraped}
    documented = set(re.findall(r"^\| `(kos_\w+)`", (ROOT / "docs" / "monitor.md").read_text(), re.MULTILINE))
    assert documented == told


def test_every_query_of_the_dashboard_asks_for_what_exists() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana" / "kos.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"kos_\w+", query)}
    documented = set(re.findall(r"^\| `(kos_\w+)`", (ROOT / "docs" / "monitor.md").read_text(), re.MULTILINE))
    assert len(queries) > 8
    assert asked <= documented


def test_of_a_cluster_that_does_not_answer_only_that_is_told() -> None:
    sampler = Sampler()
    with served(sampler=sampler) as address:
        read(address)
        sampler.answers = False
        told = values(read(address))
        assert told["kos_up", ""] == 0
        assert not [name for name, _ in told if name.startswith("kos_node")]
        assert told["kos_events_total", "unreachable"] == 1
        sampler.answers = True
        assert values(read(address))["kos_up", ""] == 1


def test_a_token_is_asked_for() -> None:
    with served(TOKEN) as address:
        for wrong in ("", "another", TOKEN[:-1]):
            code, text = refusal(address, wrong)
            assert code == 401
            assert "kos_" not in text
        assert "kos_up 1.0" in read(address, TOKEN)


def test_without_an_address_only_this_machine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def taken(host: str, port: int, _: object) -> None:
        asked.append((host, port))
        raise PortTakenError("It is taken.")

    monkeypatch.setattr(metrics, "Server", taken)
    monkeypatch.setattr(metrics.Sampler, "cluster", lambda sampler: SimpleNamespace(name="local"))
    assert run(["metrics"], io.StringIO(), io.StringIO()) == PortTakenError.exit_code
    assert asked == [("127.0.0.1", 7566)]


@pytest.mark.parametrize("path", ["/etc", "/metrics/..", "/%00", "/metrics/x"])
def test_there_is_nothing_else(path: str) -> None:
    with served() as address:
        assert refusal(address + path)[0] == 404


def test_a_token_is_made_readable_for_its_owner_alone(tmp_path: Path) -> None:
    token = read_token(tmp_path / "token")
    assert len(token) > 32
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert read_token(tmp_path / "token") == token


@pytest.mark.parametrize(("text", "mode", "said"), [("x" * 20, 0o644, "chmod 600"), ("short", 0o600, "16 characters")])
def test_a_token_that_others_can_read_or_guess_is_refused(tmp_path: Path, text: str, mode: int, said: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    os.chmod(path, mode)
    with pytest.raises(UsageError) as refused:
        read_token(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
