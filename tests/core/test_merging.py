"""The merge decision, property by property."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.merging import (
    EXECUTABLE,
    FILE,
    FOLDER,
    LINK,
    NAME_LIMIT_BYTES,
    Entry,
    Manifest,
    Verdict,
    changed,
    conflict_path,
    decide,
    equal,
    link_fault,
    merge,
    path_fault,
    same_content,
)


def file(content: str, mode: int = FILE) -> Entry:
    return Entry(content, len(content), mode)


FOLDER_ENTRY = Entry("", 0, FOLDER)
entries = st.one_of(
    st.builds(file, st.sampled_from("xyz"), st.sampled_from([FILE, EXECUTABLE])),
    st.just(FOLDER_ENTRY),
    st.builds(lambda target: Entry("", 0, LINK, target), st.sampled_from("xy")),
)
manifests = st.dictionaries(st.sampled_from("abcd"), entries)


@given(manifests, manifests, manifests)
def test_no_merge_loses_what_the_user_has(local: Manifest, base: Manifest, incoming: Manifest) -> None:
    for path, verdict in merge(local, base, incoming).items():
        if verdict is Verdict.WRITE and path in local:
            unchanged = path in base and equal(local[path], base[path])
            assert unchanged
            assert stat.S_ISDIR(local[path].mode) == stat.S_ISDIR(incoming[path].mode)


@given(manifests, manifests, manifests)
def test_a_conflict_is_a_change_on_both_sides_to_different_content(
    local: Manifest, base: Manifest, incoming: Manifest
) -> None:
    for path, verdict in merge(local, base, incoming).items():
        if verdict is Verdict.CONFLICT:
            assert not same_content(local[path], incoming[path])
            assert path not in base or not equal(base[path], incoming[path])


@given(manifests, manifests)
def test_what_did_not_change_remotely_changes_nothing_here(local: Manifest, base: Manifest) -> None:
    assert set(merge(local, base, base).values()) <= {Verdict.SKIP}


@given(manifests, manifests)
def test_an_untouched_folder_takes_every_change_and_no_deletion(base: Manifest, remote: Manifest) -> None:
    incoming = changed(base, remote)
    verdicts = merge(base, base, incoming)
    merged = base | {path: incoming[path] for path, verdict in verdicts.items() if verdict is Verdict.WRITE}
    for path, entry in remote.items():
        became_another_kind = path in base and stat.S_ISDIR(base[path].mode) != stat.S_ISDIR(entry.mode)
        if became_another_kind:
            assert verdicts[path] is Verdict.CONFLICT
        else:
            assert equal(merged[path], entry)
    assert set(merged) == set(base) | set(remote)


@given(manifests, manifests, manifests)
def test_merging_twice_is_merging_once(local: Manifest, base: Manifest, incoming: Manifest) -> None:
    first = merge(local, base, incoming)
    after = local | {path: incoming[path] for path, verdict in first.items() if verdict is Verdict.WRITE}
    again = merge(after, base, incoming)
    assert Verdict.WRITE not in again.values()


@pytest.mark.parametrize(
    ("local", "base", "incoming", "verdict"),
    [
        (None, None, file("x"), Verdict.WRITE),
        (file("x"), file("x"), file("y"), Verdict.WRITE),
        (file("z"), file("x"), file("y"), Verdict.CONFLICT),
        (file("y"), file("x"), file("y"), Verdict.SKIP),
        (file("y"), None, file("y"), Verdict.SKIP),
        (file("y"), None, file("x"), Verdict.CONFLICT),
        (None, file("x"), file("y"), Verdict.WRITE),
        (None, file("x"), file("x"), Verdict.SKIP),
        (file("x"), file("x"), file("x", EXECUTABLE), Verdict.WRITE),
        (file("x"), file("x"), FOLDER_ENTRY, Verdict.CONFLICT),
        (FOLDER_ENTRY, FOLDER_ENTRY, file("x"), Verdict.CONFLICT),
    ],
)
def test_the_cases_by_name(local: Entry | None, base: Entry | None, incoming: Entry, verdict: Verdict) -> None:
    assert decide(local, base, incoming) is verdict


def test_a_conflict_copy_keeps_folder_and_extension() -> None:
    assert conflict_path("out/log.txt", "ab.3") == "out/log.kos-conflict-ab.3.txt"
    assert conflict_path("Makefile", "ab.3", 2) == "Makefile.kos-conflict-ab.3-2"
    assert conflict_path(".profile", "ab.3") == ".profile.kos-conflict-ab.3"
    assert conflict_path("a.txt", "../x y") == "a.kos-conflict-.._x_y.txt"


@given(st.text(min_size=1).map(lambda name: name.replace("/", "_").replace("\0", "_")), st.text(max_size=20))
def test_a_conflict_copy_can_always_be_named(name: str, task: str) -> None:
    made = conflict_path(name, task)
    assert "/" not in made
    assert len(made.encode("utf-8", "surrogateescape")) <= NAME_LIMIT_BYTES + 4
    assert made != name


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\0b", ".git/hooks/x", "a/.git", "n" * 300]
)
def test_a_path_out_of_the_folder_is_at_fault(path: str) -> None:
    assert path_fault(path)


def test_a_plain_path_is_not_at_fault() -> None:
    assert not path_fault("a/b.c/..d/e f")


@given(
    st.dictionaries(
        st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join),
        st.lists(st.sampled_from(["..", "a", "b", "."]), min_size=1, max_size=6).map("/".join),
        max_size=4,
    )
)
def test_links_without_fault_cannot_be_chained_out_of_the_folder(links: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as outer:
        root = Path(outer, "1", "2", "3", "4", "5", "6", "root")
        root.mkdir(parents=True)
        for path, target in sorted(links.items()):
            parent = (root / path).parent
            if link_fault(path, target) or any(p.is_symlink() for p in [parent, *parent.parents]):
                continue
            parent.mkdir(parents=True, exist_ok=True)
            if not (root / path).exists() and not (root / path).is_symlink():
                (root / path).symlink_to(target)
        for folder, names, files in os.walk(root):
            for name in names + files:
                try:
                    real = Path(folder, name).resolve(strict=True)
                except (OSError, RuntimeError):
                    continue  # a dangling link or a loop leads nowhere
                assert real.is_relative_to(root)
