"""The dashboard of an engine on this machine: its address, the token that it asks for, and when there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.errors import EngineError
from kos_cluster.services.engines import dashboards
from kos_cluster.services.engines.engine import Address
from kos_cluster.services.engines.spec import Record, State
from kos_kernel.dashboard.panes import engines as pane


class Cluster:
    """A connection that forwards no port, and says which it would have forwarded."""

    def __init__(self, port: int = 4000) -> None:
        self.port = port
        self.asked: list[tuple[str, int, int]] = []
        self.closed = 0

    def forward_port(self, node: str, port: int, local_port: int = 0) -> Any:
        self.asked.append((node, port, local_port))
        return SimpleNamespace(port=self.port, close=self._close)

    def engine_keys(self, engine: str, host: str) -> Any:
        return SimpleNamespace(secret=f"secret of {engine}")

    def _close(self) -> None:
        self.closed += 1


def record(kind: str, port: int = 8265) -> Record:
    return Record(
        name=kind, kind=kind, id="0" * 16, job="j", state=State.SERVING, wanted=1, cpus=1, memory_bytes=0,
        restarts_left=0, plaintext=True, since_s=0.0, node="attic", workers=1, address=Address("a:1", port),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "path", "token"), [("dask", "/status", ""), ("ray", "/", f"secret of {'0' * 16}")], ids=["dask", "ray"]
)
def test_each_kind_has_its_own_page_and_its_token_is_told(kind: str, path: str, token: str) -> None:
    cluster = Cluster()
    dashboard = dashboards.opened(cluster, record(kind), 4000)  # type: ignore[arg-type]
    assert cluster.asked == [("attic", 8265, 4000)]
    assert (dashboard.address, dashboard.token) == (f"http://127.0.0.1:4000{path}", token)


def test_an_engine_without_one_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="'dask' has no dashboard now") as refused:
        dashboards.opened(Cluster(), record("dask", port=0))  # type: ignore[arg-type]
    assert "pip install bokeh" in refused.value.hint


def test_the_monitor_keeps_a_port_for_each_life_until_it_has_connected_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pane, "find", lambda cluster, name: record(name))
    monkeypatch.setattr(pane, "serving", lambda found: found)
    monkeypatch.setattr(pane, "_opened", type(pane._opened)())
    first, second = Cluster(4001), Cluster(4002)

    def asked(cluster: Cluster) -> Any:
        desk: Any = SimpleNamespace(cluster=lambda: cluster)
        return pane.ASKED["dashboard"](desk, {"engine": "ray"})

    told = {"address": "http://127.0.0.1:4001/", "token": f"secret of {'0' * 16}"}
    assert [asked(first), asked(first)] == [told, told]
    assert len(first.asked) == 1
    assert asked(second)["address"] == "http://127.0.0.1:4002/"
    assert first.closed == 1, "what leads through a closed connection is closed"
