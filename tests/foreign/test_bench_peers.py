"""`kos bench` on each system that is installed, small: every work that it does not lack is measured, nothing stays.

The peers come with the `bench` extra; those that are missing are skipped, each with what it lacks.
"""

from __future__ import annotations

import pytest

from kos_cluster.services.bench import conduct
from kos_cluster.services.bench.figures import Part
from kos_cluster.services.bench.systems import ENTRIES
from tests.services.test_bench import OVERHEAD, TINY, WORKS

pytestmark = [pytest.mark.whole, pytest.mark.timeout(conduct.RUN_TIMEOUT_S + 60)]


@pytest.mark.parametrize(("system", "part"), [(entry.name, part) for entry in ENTRIES.values() for part in entry.opens])
def test_a_system_gives_every_figure_that_it_does_not_lack_and_leaves_nothing(system: str, part: Part) -> None:
    entry = ENTRIES[system]
    if missing := entry.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    result = conduct.run_once(system, part, TINY)
    assert (result.failure, result.left) == ("", ())
    works = {Part.OVERHEAD: OVERHEAD, **WORKS}[part]
    assert [sample.work for sample in result.samples] == [work for work in works if work not in entry.lacks]
    assert all(sample.value > 0 for sample in result.samples)
