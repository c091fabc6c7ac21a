"""A node's durable state: all values of a `put` or none, over restarts; a damaged file is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kos_cluster.errors import StateError
from kos_cluster.node.store import Store


def test_values_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    store = Store(path)
    assert store.get("members") is None
    store.put({"members": b"1", "tokens": b"\x00"})
    store.put({"members": b"2"})
    store.close()
    again = Store(path)
    assert (again.get("members"), again.get("tokens")) == (b"2", b"\x00")
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_put_that_fails_changes_nothing_and_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite")
    store.put({"a": b"1"})
    with pytest.raises(StateError, match="could not be written"):
        store.put({"a": b"2", "b": None})  # type: ignore[dict-item]
    assert (store.get("a"), store.get("b")) == (b"1", None)
    store.put({"a": b"3"})
    assert store.get("a") == b"3"
    store.close()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StateError, match="cannot be read"):
        Store(path)
