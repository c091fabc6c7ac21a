"""What `%kos nodes` and other listings give: a table that is shown, and an object to work with.

    nodes = %kos nodes
    [node["name"] for node in nodes if node["state"] == "alive"]

Rules: a listing is as it was when it was asked for. People get the cells of the command's table, as text and as HTML;
programs get what `--json` prints.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import msgspec

from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, plain, printable
from kos_cluster.errors import UsageError
from kos_cluster.tasks import markup


class Table(Sequence[dict[str, Any]]):
    """Rows: each a dict, in a sequence."""

    def __init__(self, records: Iterable[Any], columns: Sequence[Column], cells: Iterable[Sequence[str]]) -> None:
        self._records = [msgspec.to_builtins(record) for record in records]
        self._columns = columns
        self._cells = [[printable(cell) for cell in row] for row in cells]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: Any) -> Any:
        return self._records[place]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records)

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns: each name with the values of all rows."""
        names = dict.fromkeys(name for record in self._records for name in record)
        return {name: [record.get(name) for record in self._records] for name in names}

    def to_pandas(self) -> Any:
        """A pandas DataFrame. Raises UsageError where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise UsageError(
                "pandas is not installed for this notebook.", "Type '%pip install pandas', or use to_dict()."
            ) from None
        return pandas.DataFrame(self._records)

    def __repr__(self) -> str:
        text = io.StringIO()
        plain(self._columns, self._cells, text)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        right = {place for place, column in enumerate(self._columns) if column.right}
        return markup.table([column.heading for column in self._columns], self._cells, right)


class Facts(Mapping[str, Any]):
    """Facts by name, told in sentences."""

    def __init__(self, record: Mapping[str, Any], told: Iterable[str]) -> None:
        self._record = dict(record)
        self._told = [printable(line) for line in told]

    def __len__(self) -> int:
        return len(self._record)

    def __getitem__(self, name: str) -> Any:
        return self._record[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._record)

    def to_pandas(self) -> Any:
        """A pandas DataFrame of one row. Raises UsageError where pandas is not installed."""
        return Table([self._record], (), ()).to_pandas()

    def __repr__(self) -> str:
        return "\n".join(self._told)

    def _repr_html_(self) -> str:
        return markup.lines(self._told)


class NotebookConsole(Console):
    """Prints what a command prints, but keeps what it lists, as `listed`."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        self.listed: Table | Facts | None = None

    def listing(self, records: Sequence[Any], columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        self.listed = Table(records, columns, rows)

    def facts(self, record: Mapping[str, Any], lines: Iterable[str]) -> None:
        self.listed = Facts(record, lines)


def show(value: Any) -> None:
    """Show what a magic gave that stands as a statement; see `magics.statements`."""
    if value is not None:
        from IPython.display import display

        display(value)
