"""The fence: once a later holder was here, an earlier one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.fencing import Fence
from kos_cluster.errors import StateError


def test_a_stalled_holder_comes_too_late():
    fence = Fence()
    fence.admit(3)
    fence.admit(3)
    fence.admit(4)
    with pytest.raises(StateError, match="token 3 is out of date: a later holder, with 4, was here"):
        fence.admit(3)
    assert fence.highest == 4


@given(tokens=st.lists(st.integers(1, 20)), highest=st.integers(0, 20))
def test_what_is_admitted_never_goes_back(tokens: list[int], highest: int):
    fence, admitted = Fence(highest), [highest]
    for token in tokens:
        try:
            fence.admit(token)
        except StateError:
            assert token < admitted[-1]
        else:
            admitted.append(token)
    assert admitted == sorted(admitted)
