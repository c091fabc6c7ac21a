"""The cache of parts: only what matches its name, least recently used first out, never what is needed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kos_cluster.errors import LimitError
from kos_cluster.node import parts
from kos_cluster.node.parts import Parts


def named(data: bytes) -> tuple[str, bytes]:
    return hashlib.sha256(data).hexdigest(), data


def put_file(cache: Parts, data: bytes) -> str:
    path = cache.incoming(len(data))
    path.write_bytes(data)
    cache.add_file(named(data)[0], path)
    return named(data)[0]


@pytest.fixture
def cache(tmp_path: Path) -> Parts:
    made = Parts(tmp_path / "parts")
    made.open()
    return made


def test_a_part_is_taken_under_its_own_name_only(cache: Parts) -> None:
    hash_, data = named(b"function")
    assert not cache.add(hash_, b"another")
    assert cache.missing([hash_]) == [hash_]
    assert cache.add(hash_, data)
    assert cache.add(hash_, data)
    assert cache.get(hash_) == data
    with pytest.raises(KeyError):
        cache.get("0" * 64)


def test_the_least_recently_used_goes_first(cache: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MEMORY_LIMIT_BYTES", 3000)
    small = [named(bytes([n]) * 1000) for n in range(4)]
    for hash_, data in small[:3]:
        cache.add(hash_, data)
    cache.get(small[0][0])
    cache.add(*small[3])
    assert cache.missing([hash_ for hash_, _ in small]) == [small[1][0]]


def test_what_is_needed_stays_over_the_limit_until_it_is_no_longer(
    cache: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MEMORY_LIMIT_BYTES", 1000)
    needed, other, last = (named(bytes([n]) * 1000) for n in range(3))
    cache.pin([needed[0]])
    cache.pin([needed[0]])
    cache.add(*needed)
    cache.add(*other)
    assert cache.missing([needed[0], other[0]]) == [other[0]]
    cache.unpin([needed[0]])
    cache.add(*last)
    assert needed[0] in cache
    cache.unpin([needed[0]])
    cache.add(*last)
    assert cache.missing([needed[0], last[0]]) == [needed[0]]


def test_large_parts_are_files_that_go_with_their_entry(
    cache: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "FILES_LIMIT_BYTES", 5000)
    first, second = put_file(cache, b"a" * 3000), put_file(cache, b"b" * 3000)
    assert cache.missing([first, second]) == [first]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [second]
    assert cache.get(second) == tmp_path / "parts" / second


def test_the_same_large_part_twice_is_kept_once(cache: Parts, tmp_path: Path) -> None:
    assert put_file(cache, b"a" * 3000) == put_file(cache, b"a" * 3000)
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_what_cannot_fit_is_refused_with_the_sizes(cache: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_LIMIT_BYTES", 4000)
    monkeypatch.setattr(parts, "FILES_LIMIT_BYTES", 5000)
    with pytest.raises(LimitError, match=r"4,001 bytes.*4,000 for one, 5,000 in all, 0 in use"):
        cache.incoming(4001)
    cache.pin([put_file(cache, b"a" * 3000)])
    with pytest.raises(LimitError, match="3,000 in use"):
        cache.incoming(2001)
    cache.incoming(2000)
