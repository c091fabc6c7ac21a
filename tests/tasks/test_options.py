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


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"cpus": 1.5}, {"retries": -1}, {"timeout": 0}, {"max_parallel": -1}])
def test_wrong_options_name_themselves(wrong: dict[str, int]):
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        Options(**wrong)  # type: ignore[arg-type]


def test_options_are_parted_from_the_functions_own_keywords():
    options, own = split_options({"cpus": 2, "colour": "blue", "retries": 0})
    assert (options.cpus, options.retries, own) == (2, 0, {"colour": "blue"})
