"""Hypothesis makes schedules of faults, so that what fails is as small as can be."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from kos_cluster.sim.faults import KINDS, Fault
from kos_cluster.sim.mutants import MUTANTS
from kos_cluster.sim.patching import patched
from kos_cluster.sim.run import Options, run_seed

SECONDS = 6.0
OPTIONS = Options(seconds=SECONDS, membership=False)


def seconds(least: float, most: float) -> st.SearchStrategy[float]:
    """Tenths of a second: few digits to read, few to shrink."""
    return st.integers(round(least * 10), round(most * 10)).map(lambda tenths: tenths / 10)


def faults(kinds: tuple[str, ...]) -> st.SearchStrategy[list[Fault]]:
    fault = st.builds(
        Fault,
        at_s=seconds(0.5, SECONDS - 1.0),
        kind=st.sampled_from(kinds),
        lasts_s=seconds(0.1, 4.0),
        hosts=st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True).map(lambda hosts: tuple(sorted(hosts))),
        size=st.integers(0, 10).map(lambda tenths: tenths / 10),
    )
    return st.lists(fault, max_size=12)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 16), schedule=faults(tuple(KINDS)))
def test_any_schedule_holds_every_invariant(seed: int, schedule: list[Fault]):
    result = run_seed(seed, OPTIONS, schedule=schedule)
    assert not result.rule, result.what


def test_a_failing_schedule_shrinks_to_what_matters():
    mutant = MUTANTS["torn-tail-believed"]

    def fails(schedule: list[Fault]) -> bool:
        with patched(mutant.patches):
            return bool(run_seed(1, OPTIONS, schedule=schedule).rule)

    smallest = find(
        faults(("crash", "loss", "slow", "delay")),
        fails,
        settings=settings(
            max_examples=200, deadline=None, derandomize=True, phases=[Phase.generate, Phase.shrink], database=None
        ),
    )
    assert [fault.kind for fault in smallest] == ["crash"]
