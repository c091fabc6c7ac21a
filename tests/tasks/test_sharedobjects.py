"""Objects that only one machine's processes share are found without pickling what holds them."""

from __future__ import annotations

import functools
import multiprocessing
import threading
from typing import Any

import pytest

from kos_cluster.tasks.sharedobjects import held_by

LOCK = multiprocessing.get_context("fork").Lock()


def default(_: int = 0, lock: Any = LOCK) -> None: ...


class Holder:
    lock = LOCK

    def method(self, lock: Any = LOCK) -> None: ...


class Instance:
    def __init__(self) -> None:
        self.unpicklable = threading.Lock()
        self.deep = [{"lock": LOCK}]


@pytest.mark.parametrize(
    "value",
    [LOCK, default, Holder, Instance(), functools.partial(print, LOCK), {"a": (1, {LOCK: 2})}],
    ids=["itself", "a default", "a class", "an object", "a partial", "containers"],
)
def test_where_it_is_found(value: object) -> None:
    assert held_by(value) == "Lock"


class NotThere:
    """Stands for something, and there is nothing yet."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("there is no request")


def test_what_cannot_be_looked_into_is_passed() -> None:
    assert held_by(NotThere()) is None
    assert held_by([NotThere(), LOCK]) == "Lock"


def test_what_goes_round_in_a_circle_ends() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert held_by(circle) is None
