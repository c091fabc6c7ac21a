"""Options of submit and map: checked where they are given."""

from __future__ import annotations

import pytest

from kos_cluster.errors import UsageError
from kos_cluster.tasks.options import Options, size_bytes, split_options


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), (7, 7), ("512", 512), ("8G", 8 << 30), ("1.5k", 1536), ("2 MiB", 2 << 20), ("1TB", 1 << 40)],
)
def test_amounts_of_memory(text: int | str, size: int):
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", -1, "8X", "1e9", None])
def test_what_is_no_amount_of_memory_is_said(text: object):
    with pytest.raises(UsageError, match="not an amount of memory"):
        size_bytes(text)  # type: ignore[arg-type]


WRONG = [
    *({"cpus": value} for value in (0, 1.5, True, 10**30, "2")),
    *({"retries": value} for value in (-1, 1.0)),
    *({"timeout": value} for value in (0, "1", True)),
    *({"seed": value} for value in ("x", 1.5, -1, 2**70)),
    *({"env": value} for value in ("A", {"A": 1}, {1: "a"}, {"A": "x\0y"}, {"": "x"}, {"A=B": "x"})),
    {"max_parallel": -1},
    {"on": 5},
    {"name": 5},
    {"fresh": "no"},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_options_name_themselves(wrong: dict[str, object]):
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        Options(**wrong)  # type: ignore[arg-type]


def test_none_stands_for_a_default():
    options, own = split_options({"on": None, "timeout": None, "seed": None, "colour": None})
    assert (options, own) == (Options(), {"colour": None})


def test_options_are_parted_from_the_functions_own_keywords():
    options, own = split_options({"cpus": 2, "colour": "blue", "retries": 0})
    assert (options.cpus, options.retries, own) == (2, 0, {"colour": "blue"})
