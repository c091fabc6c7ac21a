"""Snapshots, archives and what comes back, on real folders."""

from __future__ import annotations

import io
import mmap
import os
import socket
import stat
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kos_cluster.core.merging import Entry
from kos_cluster.errors import LimitError, ProtocolError, StateError, UsageError
from kos_cluster.tasks import workspace
from kos_cluster.tasks.changes import Merger, Tracker, apply, changes
from kos_cluster.tasks.workspace import (
    Member,
    base_file,
    pack,
    read_archive,
    snapshot,
    unpack,
    workspace_around,
    write_archive,
)


def fill(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        os.fspath(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return fill(tmp_path / "home", {"main.py": "print(1)", "data/in.csv": "1,2", "log.txt": "old"})


def copy_of(home: Path, place: Path) -> Path:
    unpack(pack(snapshot(home)), place)
    return place


# ---- there


def test_a_copy_holds_what_the_folder_holds(home: Path, tmp_path: Path) -> None:
    (home / "empty").mkdir()
    (home / "run.sh").write_text("#!/bin/sh")
    (home / "run.sh").chmod(0o755)
    (home / "data" / "up").symlink_to("../main.py")
    copy = copy_of(home, tmp_path / "copy")
    assert contents(copy) == contents(home)
    assert (copy / "empty").is_dir()
    assert os.access(copy / "run.sh", os.X_OK)
    assert not os.access(copy / "main.py", os.X_OK)
    assert os.readlink(copy / "data" / "up") == "../main.py"
    assert sorted(os.listdir(copy)) == sorted(os.listdir(home))  # no trace that the user sees


def test_an_archive_depends_on_content_alone(home: Path, tmp_path: Path) -> None:
    first = pack(snapshot(home))
    os.utime(home / "main.py", (1, 1))
    (home / "main.py").chmod(0o600)
    assert pack(snapshot(home)) == first
    assert pack(snapshot(copy_of(home, tmp_path / "copy"))) == first
    (home / "main.py").write_text("print(2)")
    assert pack(snapshot(home)) != first


def test_what_never_travels_is_left_out(home: Path) -> None:
    fill(home, {".git/config": "", "a/__pycache__/x.pyc": "", ".venv/bin/python": "", "node_modules/m": "", "keep": ""})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(home / "sock"))
        os.mkfifo(home / "pipe")
        (home / "out").symlink_to("/etc")
        taken = snapshot(home)
    assert set(taken.manifest) == {"main.py", "data", "data/in.csv", "log.txt", "a", "keep"}
    assert set(taken.left_out) == {"sock", "pipe", "out"}
    assert "/etc" in taken.left_out["out"]


def test_the_keys_of_kos_never_travel(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home, {"state/kos/clusters/local/client/key.pem": "secret", "state/mine": "", ".kosignore": "!/state/kos"})
    monkeypatch.setenv("KOS_HOME", str(home / "state" / "kos"))
    taken = snapshot(home)
    assert "state/mine" in taken.manifest
    assert not [path for path in taken.manifest if path.startswith("state/kos")]
    assert "keys" in taken.left_out["state/kos"]
    for secret in ("state/kos", "state/kos/clusters/local", "state/kos/clusters/local/client"):
        with pytest.raises(UsageError, match="never travels"):
            snapshot(home / secret)
    fill(home, {"state/kos/clusters/local/run/node1/spool/copy/main.py": ""})
    assert "main.py" in snapshot(home / "state/kos/clusters/local/run/node1/spool/copy").manifest


def test_kosignore_is_read_as_gitignore(home: Path) -> None:
    fill(home, {".kosignore": "*.ckpt\n/big/\n!keep.ckpt\n"})
    fill(home, {"a.ckpt": "", "keep.ckpt": "", "big/x": "", "data/big/y": ""})
    taken = snapshot(home)
    assert "a.ckpt" not in taken.manifest
    assert "big" not in taken.manifest
    assert "big/x" not in taken.manifest
    assert {"keep.ckpt", "data/big/y", ".kosignore"} <= set(taken.manifest)


def test_a_folder_over_the_limit_is_refused_with_its_largest_files(home: Path) -> None:
    for number in range(7):
        with (home / f"big{number}.bin").open("wb") as file:
            file.truncate((20 + number) << 20)
    with pytest.raises(LimitError) as refusal:
        snapshot(home)
    sentence = str(refusal.value)
    for number in (2, 3, 4, 5, 6):
        assert f"big{number}.bin ({20 + number}.0 MiB)" in sentence
    assert "big1.bin" not in sentence
    assert ".kosignore" in sentence
    fill(home, {".kosignore": "*.bin"})
    assert "log.txt" in snapshot(home).manifest


def test_a_folder_with_too_many_files_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "WORKSPACE_LIMIT_ENTRIES", 3)
    with pytest.raises(LimitError, match="more than 3 files"):
        snapshot(home)


def test_a_missing_folder_and_a_bad_pattern_are_told(home: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        snapshot(home / "nowhere")
    fill(home, {".kosignore": "!"})
    with pytest.raises(UsageError, match="kosignore"):
        snapshot(home)


# ---- archives that mean harm


def tar_of(*members: tarfile.TarInfo, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info in members:
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def sparse(name: str) -> tarfile.TarInfo:
    made = info(name)
    made.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
    return made


HARMFUL = {
    "absolute": tar_of(info("/tmp/kos-escape")),
    "climbing": tar_of(info("../escape")),
    "climbing within": tar_of(info("a/../../escape")),
    "link to absolute": tar_of(info("a", tarfile.SYMTYPE, "/etc")),
    "link out": tar_of(info("a", tarfile.SYMTYPE, "../..")),
    "link climbing after a name": tar_of(info("a", tarfile.SYMTYPE, "b/../..")),
    "through a link": tar_of(info("a", tarfile.SYMTYPE, "b"), info("a/x")),
    "through a file": tar_of(info("a"), info("a/x")),
    "hard link": tar_of(info("a", tarfile.LNKTYPE, "/etc/passwd")),
    "device": tar_of(info("a", tarfile.CHRTYPE)),
    "block device": tar_of(info("a", tarfile.BLKTYPE)),
    "pipe": tar_of(info("a", tarfile.FIFOTYPE)),
    "twice": tar_of(info("a"), info("a")),
    "sparse": tar_of(sparse("a")),
    "hook": tar_of(info(".git/hooks/pre-commit")),
    "cut": tar_of(info("a"), content=b"x" * 5000)[:2000],
    "noise": bytes(range(256)) * 8,
    "empty": b"",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_archive_is_refused_whole(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(ProtocolError):
        unpack(HARMFUL[name], folder)
    with pytest.raises(ProtocolError):
        apply(HARMFUL[name], folder)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", folder]


def test_unpack_takes_only_an_empty_folder(home: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not empty"):
        unpack(pack(snapshot(home)), home)


# ---- and back


def test_what_changed_comes_back_and_what_was_deleted_does_not(home: Path, tmp_path: Path) -> None:
    taken = snapshot(home)
    copy = copy_of(home, tmp_path / "copy")
    assert changes(copy) is None
    fill(copy, {"log.txt": "new", "out/result.csv": "3", "out/deep/er.txt": "4"})
    (copy / "made").mkdir()
    (copy / "data" / "in.csv").unlink()
    (copy / "main.py").chmod(0o755)
    archive = changes(copy)
    assert archive is not None
    report = apply(archive, home, taken.manifest, "j.0")
    assert set(report.written) == {"log.txt", "main.py", "out", "out/result.csv", "out/deep", "out/deep/er.txt", "made"}
    assert (report.conflicts, report.refused) == ({}, {})
    assert contents(home) == {
        "data/in.csv": "1,2",
        "log.txt": "new",
        "main.py": "print(1)",
        "out/deep/er.txt": "4",
        "out/result.csv": "3",
    }
    assert os.access(home / "main.py", os.X_OK)


def test_a_file_changed_on_both_sides_comes_back_beside(home: Path, tmp_path: Path) -> None:
    taken = snapshot(home)
    copy = copy_of(home, tmp_path / "copy")
    fill(copy, {"log.txt": "theirs", "data/in.csv": "same", "new.txt": "theirs"})
    fill(home, {"log.txt": "mine", "data/in.csv": "same", "new.txt": "mine"})
    report = apply(changes(copy) or b"", home, taken.manifest, "j.0")
    assert report.conflicts == {"log.txt": "log.kos-conflict-j.0.txt", "new.txt": "new.kos-conflict-j.0.txt"}
    assert report.written == []
    after = contents(home)
    assert (after["log.txt"], after["log.kos-conflict-j.0.txt"]) == ("mine", "theirs")
    assert (after["new.txt"], after["new.kos-conflict-j.0.txt"]) == ("mine", "theirs")
    assert after["data/in.csv"] == "same"
    fill(home, {"log.kos-conflict-j.0.txt": "mine too"})
    again = apply(changes(copy) or b"", home, taken.manifest, "j.0")
    assert again.conflicts["log.txt"] == "log.kos-conflict-j.0-2.txt"
    assert contents(home)["log.kos-conflict-j.0.txt"] == "mine too"


def test_nothing_is_written_through_a_link(home: Path, tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"victim": "untouched"})
    (home / "away").symlink_to(outside)
    (home / "leaf").symlink_to(outside / "victim")
    archive = write_archive(
        [
            Member("away", Entry("", 0, stat.S_IFDIR | 0o755), b""),
            Member("away/victim", Entry("", 4, stat.S_IFREG | 0o644), b"evil"),
            Member("leaf", Entry("", 4, stat.S_IFREG | 0o644), b"evil"),
            Member("log.txt/under", Entry("", 4, stat.S_IFREG | 0o644), b"evil"),
        ]
    )
    report = apply(archive, home, {}, "j.0")
    assert contents(outside) == {"victim": "untouched"}
    assert (home / "leaf").is_symlink()
    assert (home / "log.txt").read_text() == "old"
    assert report.conflicts["away/victim"] == "away.kos-conflict-j.0/victim"
    assert (home / report.conflicts["away/victim"]).read_text() == "evil"  # kept, where it can do no harm
    assert (home / report.conflicts["leaf"]).read_text() == "evil"
    assert (home / report.conflicts["log.txt/under"]).read_text() == "evil"


def test_links_inside_come_back(home: Path, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    (copy / "latest").symlink_to("data/in.csv")
    (copy / "escape").symlink_to("/etc/passwd")
    taken = Tracker(copy).take()
    assert taken.archive is not None
    assert "escape" in taken.left_out
    assert apply(taken.archive, home).written == ["latest"]
    assert (home / "latest").read_text() == "1,2"


def test_a_rewritten_file_keeps_who_may_read_it(home: Path, tmp_path: Path) -> None:
    (home / "log.txt").chmod(0o600)
    copy = copy_of(home, tmp_path / "copy")
    fill(copy, {"log.txt": "new"})
    apply(changes(copy) or b"", home)
    assert stat.S_IMODE((home / "log.txt").stat().st_mode) == 0o600
    assert (home / "log.txt").read_text() == "new"


def test_no_temporary_file_is_left(home: Path, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    fill(copy, {"log.txt": "theirs", "x": "1"})
    fill(home, {"log.txt": "mine"})
    apply(changes(copy) or b"", home, task="t")
    assert not list(home.rglob(".kos-*"))


def test_a_folder_that_cannot_be_written_is_told(home: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    copy = copy_of(home, tmp_path / "copy")
    fill(copy, {"data/new": "1", "other": "2"})
    (home / "data").chmod(0o500)
    report = apply(changes(copy) or b"", home)
    (home / "data").chmod(0o700)
    assert "data/new" in report.refused
    assert "other" in report.written


def test_changes_over_the_limit_are_named_and_the_rest_comes(home: Path, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    with (copy / "huge.bin").open("wb") as file:
        file.truncate(workspace.WORKSPACE_LIMIT_BYTES + 1)
    fill(copy, {"small.txt": "kept"})
    with pytest.raises(LimitError, match=r"huge\.bin"):
        changes(copy)
    taken = Tracker(copy).take()
    assert set(taken.left_out) == {"huge.bin"}
    assert [member.path for member in read_archive(taken.archive or b"")] == ["small.txt"]


def test_what_kosignore_names_does_not_come_back(home: Path, tmp_path: Path) -> None:
    fill(home, {".kosignore": "*.tmp\nscratch/"})
    copy = copy_of(home, tmp_path / "copy")
    fill(copy, {"a.tmp": "", "scratch/b": "", "__pycache__/m.pyc": "", "out": "1"})
    assert [member.path for member in read_archive(changes(copy) or b"")] == ["out"]


# ---- a task after a task


def test_each_change_is_told_once(home: Path, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    tracker = Tracker(copy)
    assert tracker.take().archive is None
    for round_number in range(30):  # same size, same inode, within one tick of the clock
        fill(copy, {"out.txt": f"{round_number:04}"})
        (member,) = read_archive(tracker.take().archive or b"")
        assert member.content == f"{round_number:04}".encode()
        assert tracker.take().archive is None


def test_a_task_that_goes_on_writing_is_in_no_conflict_with_itself(home: Path, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    tracker, merger = Tracker(copy), Merger(home, durable=False)
    for round_number in range(3):
        with (copy / "log.txt").open("a") as file:
            file.write(f" {round_number}")
        assert merger.apply(tracker.take().archive or b"", f"j.{round_number}").written == ["log.txt"]
    assert (home / "log.txt").read_text() == "old 0 1 2"


def test_two_tasks_that_write_one_file_leave_one_conflict_copy(home: Path, tmp_path: Path) -> None:
    copies = [copy_of(home, tmp_path / name) for name in ("one", "two")]
    trackers, merger = [Tracker(copy) for copy in copies], Merger(home, durable=False)
    for round_number in range(4):
        for side, (copy, tracker) in enumerate(zip(copies, trackers, strict=True)):
            with (copy / "log.txt").open("a") as file:
                file.write(f" {side}{round_number}")
            merger.apply(tracker.take().archive or b"", f"j.{round_number * 2 + side}")
    assert contents(home) == {
        "data/in.csv": "1,2",
        "log.kos-conflict-j.1.txt": "old 10 11 12 13",
        "log.txt": "old 00 01 02 03",
        "main.py": "print(1)",
    }


def test_moved_files_with_the_same_size_are_seen(home: Path, tmp_path: Path) -> None:
    fill(home, {"a": "1111", "b": "2222"})
    copy = copy_of(home, tmp_path / "copy")
    tracker = Tracker(copy)
    assert tracker.take().archive is None
    time.sleep(0.03)  # past the clock's tick, as any second process is
    os.replace(copy / "a", copy / "b")
    (member,) = read_archive(tracker.take().archive or b"")
    assert (member.path, member.content) == ("b", b"1111")


def test_the_workspace_is_found_from_within(home: Path, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    assert workspace_around(copy / "data") == copy
    assert workspace_around(tmp_path) is None
    base_file(copy).write_text("{")
    with pytest.raises(StateError, match="damaged"):
        Tracker(copy)


def test_a_name_that_is_not_text_travels(home: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    fill(home, {name: "x"})
    copy = copy_of(home, tmp_path / "copy")
    fill(copy, {name: "y"})
    assert apply(changes(copy) or b"", home).written == [name]
    assert (home / name).read_text() == "y"


def test_a_look_at_an_unchanged_workspace_reads_no_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(copy_of(home, tmp_path / "copy"))

    def fail(*_: object) -> Callable[..., object]:
        raise AssertionError("a file was read")

    monkeypatch.setattr("kos_cluster.tasks.changes.look", fail)
    assert tracker.take().archive is None
    assert tracker.take().archive is None


def test_what_is_written_through_a_memory_map_comes_when_the_file_is_closed(home: Path, tmp_path: Path) -> None:
    tracker = Tracker(copy_of(home, tmp_path / "copy"))
    assert tracker.take().archive is None
    with open(tmp_path / "copy" / "log.txt", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:] = b"new"
    assert apply(tracker.take().archive or b"", home).written == ["log.txt"]
    assert (home / "log.txt").read_text() == "new"
