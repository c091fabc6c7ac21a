"""Deadlines: told once each, in order, whatever was changed or dropped meanwhile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.replicated.deadlines import Deadlines

keys = st.sampled_from("abcdef")
times = st.integers(0, 20).map(float)
steps = st.lists(st.one_of(st.tuples(st.just("set"), keys, times), st.tuples(st.sampled_from(("drop", "due")), keys)))


@given(steps=steps)
def test_it_tells_what_a_plain_table_would(steps: list[tuple[str, str, float]]):
    deadlines, table, now = Deadlines(), dict[str, float](), 0.0
    for kind, key, *at in steps:
        if kind == "set":
            deadlines.set(key, at[0])
            table[key] = at[0]
        elif kind == "drop":
            deadlines.drop(key)
            table.pop(key, None)
        else:
            now += 1.0
            expected = sorted((at_s, key) for key, at_s in table.items() if at_s <= now)
            assert deadlines.due(now) == [key for _, key in expected]
            for _, key in expected:
                del table[key]
