"""The real Ray on three nodes: what every engine must do, and what people use Ray for."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.engines.conformance import RESULT_S, EngineConformance
from tests.engines.conftest import EngineMesh, mesh

__all__ = ["mesh"]

pytestmark = [
    pytest.mark.whole,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


class TestRay(EngineConformance):
    """One engine for all."""

    kind = "ray"
    plaintext = True
    memory = "2500M"

    @pytest.fixture(scope="class")
    @classmethod
    def ray(cls, mesh: EngineMesh, engine: Any) -> Any:
        ray = mesh.cluster.engine("ray")
        assert ray.is_initialized()
        return ray

    def test_tasks(self, ray: Any) -> None:
        assert ray.get([ray.remote(lambda x: x * x).remote(x) for x in range(20)], timeout=RESULT_S) == [
            x * x for x in range(20)
        ]

    def test_an_actor_keeps_its_state(self, ray: Any) -> None:
        class Counter:
            def __init__(self) -> None:
                self.count = 0

            def add(self, more: int) -> int:
                self.count += more
                return self.count

        counter = ray.remote(Counter).remote()
        assert ray.get([counter.add.remote(each) for each in (1, 2, 3)], timeout=RESULT_S) == [1, 3, 6]

    def test_a_placement_group_is_spread_over_the_workers(self, ray: Any) -> None:
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
        ray.get(group.ready(), timeout=RESULT_S)

        def where() -> str:
            return str(ray.get_runtime_context().get_node_id())

        places = [PlacementGroupSchedulingStrategy(group, bundle) for bundle in range(3)]
        tasks = [ray.remote(where).options(scheduling_strategy=place).remote() for place in places]
        assert len(set(ray.get(tasks, timeout=RESULT_S))) == 3
        remove_placement_group(group)
