"""What a listing is to a program: rows, columns, and a DataFrame where pandas is."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from kos_cluster.cli.tables import Column
from kos_cluster.errors import UsageError
from kos_kernel.listings import Facts, Table

COLUMNS = (Column("NAME"), Column("SLOTS", right=True))
RECORDS = [{"name": "desk", "slots": 2}, {"name": "<b>\x1b[2J", "slots": 16, "more": [1]}]
TABLE = Table(RECORDS, COLUMNS, [["desk", "2"], ["<b>\x1b[2J", "16"]])


def test_rows_are_dicts_in_a_sequence() -> None:
    assert len(TABLE) == 2 and TABLE[0]["slots"] == 2 and next(row["name"] for row in TABLE) == "desk"
    assert list(TABLE) == RECORDS and TABLE[-1] is list(TABLE)[1]


def test_columns_are_lists_of_all_rows() -> None:
    assert TABLE.to_dict() == {"name": ["desk", "<b>\x1b[2J"], "slots": [2, 16], "more": [None, [1]]}


def test_text_and_markup_show_the_cells_and_nothing_that_acts() -> None:
    assert repr(TABLE).splitlines()[:2] == ["NAME        SLOTS", "desk            2"]
    markup = TABLE._repr_html_()
    assert "&lt;b&gt;" in markup and "<b>" not in markup and "\x1b" not in markup + repr(TABLE)


def test_facts_are_a_mapping_and_sentences() -> None:
    facts = Facts({"alive": 2}, ["2 nodes <alive>."])
    assert facts["alive"] == 2 and facts.to_dict() == dict(facts) == {"alive": 2}
    assert repr(facts) == "2 nodes <alive>." and "&lt;alive&gt;" in facts._repr_html_()


def test_a_data_frame_where_pandas_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("pandas")
    stand_in.DataFrame = lambda records: ("frame", records)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    assert TABLE.to_pandas() == ("frame", RECORDS)


def test_without_pandas_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        TABLE.to_pandas()
