"""Options of submit and map: checked where they are given."""

from __future__ import annotations

from typing import Any

import pytest

from kos_cluster.core.records import LabelTerm, Layout, Needs
from kos_cluster.errors import PlacementError, UsageError
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
    *({"gpus": value} for value in (-1, 0.5, "1")),
    *({"resources": value} for value in ("a", {"a": 0}, {"a": -1}, {"a b": 1}, {1: 1}, {"a": "1"}, {"a": 2**40})),
    *({"away_from": value} for value in (5, [5], [""], [f"n{number}" for number in range(17)])),
    {"near": ["a", None]},
    {"apart": 5},
    {"spread": 1},
    {"pack": "yes"},
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


@pytest.mark.parametrize("label", ["zone", "zone=", "=a", "zo ne=a", "zone==a", "zone=a b", "!=a", "x" * 64 + "=a"])
def test_what_is_no_label_is_said(label: str):
    with pytest.raises(UsageError, match="is not a label"):
        Options(labels=[label])


@pytest.mark.parametrize(
    "labels", [["zone=a", "disk!=slow"], {"zone": "a", "disk": "!slow"}, ("disk!=slow", "zone=a", "zone=a")]
)
def test_labels_in_any_form_are_the_same_need(labels: Any):
    needs = Options(labels=labels).needs()
    assert needs.labels == (LabelTerm("disk", "slow", True), LabelTerm("zone", "a"))


def test_needs_of_every_kind_are_told():
    options = Options(
        cpus=2,
        memory="1G",
        gpus=1,
        resources={"scanner": 1, "licence": 2},
        labels="zone=a",
        away_from="n1",
        spread=True,
        near="web",
        apart=["db", "db"],
    )
    assert options.needs(("numpy",)) == Needs(
        2,
        1 << 30,
        "",
        ("numpy",),
        1,
        (("licence", 2), ("scanner", 1)),
        (LabelTerm("zone", "a"),),
        ("n1",),
        Layout.SPREAD,
        ("web",),
        ("db",),
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"spread": True, "pack": True}, "No task can be spread and packed"),
        ({"on": "a", "away_from": "a"}, "No task can be on a and away from it"),
        ({"labels": ["zone=a", "zone=b"]}, "where zone is a and where it is b"),
        ({"labels": ["zone=a", "zone!=a"]}, "where zone is a and away from there"),
        ({"near": "web", "apart": "web"}, "near job web and apart from it"),
    ],
)
def test_contradictions_are_refused_at_once(wrong: dict[str, Any], said: str):
    with pytest.raises(PlacementError, match=said):
        Options(**wrong)
