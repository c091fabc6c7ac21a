"""What changed in an unpacked workspace, and how it comes back into the folder that it was copied from.

Rules it keeps:
- after a task that touched nothing a look costs microseconds (`watching`), else one `stat` a file; a file is read only
  when that says that it may have changed;
- too much to send is never a silent loss: what fits is sent and the rest is named;
- every change says what it was made from, so that a second change of the same file by the same task is no conflict;
- coming back, a file appears whole (temporary file, fsync, rename) or not at all; nothing is written outside the folder
  nor through a link, and content of the user's is never overwritten nor deleted (`core.merging` decides).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from kos_cluster.core.merging import (
    ALWAYS_LEFT_OUT,
    EXECUTABLE,
    FOLDER,
    Entry,
    Manifest,
    Verdict,
    conflict_path,
    decide,
    equal,
    link_fault,
    path_fault,
)
from kos_cluster.errors import LimitError
from kos_cluster.tasks.watching import FolderWatch
from kos_cluster.tasks.workspace import (
    SEALED_NS,
    WORKSPACE_LIMIT_BYTES,
    WORKSPACE_LIMIT_ENTRIES,
    Member,
    ignoring,
    look,
    read_archive,
    read_base,
    readable_size,
    write_archive,
)

# A file written this shortly before a look may be written again without its times moving: kernels count in ticks.
TICK_NS = 20_000_000
CONFLICT_COPIES_LIMIT = 1000  # of one file
_LEFT_OUT_NAMED = 5

Stamp = tuple[int, int, int, int]  # mtime, ctime, size, inode


@dataclass(frozen=True)
class Changes:
    """`archive` is None when nothing is to be sent. `left_out` names what changed and is not in it: path -> why."""

    archive: bytes | None = None
    left_out: dict[str, str] = field(default_factory=dict)


_NOTHING = Changes()


class Tracker:
    """Looks again and again at one unpacked workspace, and tells each change once."""

    def __init__(self, folder: Path) -> None:
        base = read_base(folder)
        self._root = os.fspath(folder)
        self._known = dict(base.manifest)
        self._noted_ns = base.noted_ns
        self._skip = ignoring(base.ignore, "The workspace's .kosignore")
        self._stamps: dict[str, Stamp] = {}
        self._unsettled: set[str] = set()
        self._skipped: set[str] = set()
        self._watch = FolderWatch()
        self._looked = False

    def take(self) -> Changes:
        """What was created or changed since the last take, or since the folder was unpacked."""
        if self._looked and not self._watch.touched():
            return _NOTHING
        started_ns = time.time_ns()
        suspects = self._scan()
        self._looked = True
        if not suspects:
            return _NOTHING
        members: list[Member] = []
        left_out: dict[str, str] = {}
        room = WORKSPACE_LIMIT_BYTES
        for path, stamp in sorted(suspects.items(), key=lambda item: item[1][2]):  # small ones first, so that most fit
            self._stamps[path] = stamp
            self._unsettled.discard(path)
            if stamp[1] > started_ns - TICK_NS:
                self._unsettled.add(path)
            if stamp[2] > room:
                left_out[path] = f"is too large to come back ({readable_size(stamp[2])})"
                continue
            try:
                entry, content = look(os.path.join(self._root, path))
            except OSError as error:
                if os.path.lexists(os.path.join(self._root, path)):
                    left_out[path] = f"cannot be read ({error.strerror})"
                continue
            before = self._known.get(path)
            if before is not None and equal(before, entry):
                continue
            if fault := path_fault(path) or (link_fault(path, entry.target) if stat.S_ISLNK(entry.mode) else ""):
                left_out[path] = fault
            elif len(content) > room or len(members) >= WORKSPACE_LIMIT_ENTRIES:
                left_out[path] = f"is more than can come back ({readable_size(len(content))})"
            else:
                room -= len(content)
                members.append(Member(path, entry, content, before))
                self._known[path] = entry
        return Changes(write_archive(members) if members else None, left_out)

    def _scan(self) -> dict[str, Stamp]:
        """What may have changed, by `stat` alone. Runs after every task that wrote, so it does nothing twice."""
        suspects: dict[str, Stamp] = {}
        known, stamps, unsettled, skipped = self._known, self._stamps, self._unsettled, self._skipped
        waiting = [("", self._root)]
        while waiting:
            prefix, place = waiting.pop()
            self._watch.add(place)  # before it is listed, so that nothing falls between the two
            try:
                entries = os.scandir(place)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # gone, or closed by the user's code: nothing of it can come back
            with entries:
                for entry in entries:
                    path = prefix + entry.name
                    if path in skipped:
                        continue
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if path not in known and path not in stamps and self._is_skipped(path, entry.name, is_folder):
                        continue
                    if is_folder:
                        waiting.append((path + "/", entry.path))
                        if path not in known or known[path].mode != FOLDER:
                            suspects[path] = (0, 0, 0, 0)
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
                    seen = stamps.get(path)
                    if seen == stamp and path not in unsettled:
                        continue
                    if seen is None and self._as_unpacked(path, stamp, status.st_mode):
                        stamps[path] = stamp
                    elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                        suspects[path] = stamp
        return suspects

    def _is_skipped(self, path: str, name: str, is_folder: bool) -> bool:
        if name not in ALWAYS_LEFT_OUT and not self._skip(path, is_folder):
            return False
        if len(self._skipped) >= WORKSPACE_LIMIT_ENTRIES:
            self._skipped.clear()
        self._skipped.add(path)
        return True

    def _as_unpacked(self, path: str, stamp: Stamp, mode: int) -> bool:
        """Whether a file not looked at before is still just as `unpack` left it."""
        entry = self._known.get(path)
        if entry is None or stamp[0] != SEALED_NS or stamp[1] > self._noted_ns + TICK_NS:
            return False
        if stat.S_ISLNK(mode):
            return True
        return stamp[2] == entry.size and bool(mode & stat.S_IXUSR) == (entry.mode == EXECUTABLE)


def changes(folder: Path) -> bytes | None:
    """The archive of what was created or changed in a copy since it was unpacked; None for nothing. Never a deletion.

    Raises LimitError when it does not all fit.
    """
    taken = Tracker(folder).take()
    if taken.left_out:
        raise left_out_error(taken.left_out)
    return taken.archive


def left_out_error(left_out: dict[str, str]) -> LimitError:
    """Says which files did not come back, and why."""
    return LimitError(
        f"Not everything that was written came back: {describe(left_out)}.",
        f"{readable_size(WORKSPACE_LIMIT_BYTES)} can come back; write large files to shared storage, or name what you"
        " do not need in .kosignore.",
    )


def describe(reasons: dict[str, str]) -> str:
    """Paths with their reasons, the first few of them."""
    named = "; ".join(f"{path} {why}" for path, why in itertools.islice(reasons.items(), _LEFT_OUT_NAMED))
    rest = len(reasons) - _LEFT_OUT_NAMED
    return f"{named}; and {rest} more" if rest > 0 else named


# ---- coming back


@dataclass
class MergeReport:
    """What became of an archive of changes."""

    written: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)  # path -> where the incoming version is
    refused: dict[str, str] = field(default_factory=dict)  # path -> why it could not be written


def apply(archive: bytes | memoryview, folder: Path, base: Manifest | None = None, task: str = "") -> MergeReport:
    """Merge changes into a folder once. Without `base`, what the archive says of itself is the base."""
    return Merger(folder, base).apply(archive, task)


class Merger:
    """Merges changes into one folder, from several tasks one after another.

    It remembers which conflict copy holds which content, so that what a task goes on writing after a first conflict
    goes on in the same copy.
    """

    def __init__(self, folder: Path, base: Manifest | None = None, *, durable: bool = True) -> None:
        self._folder = folder
        self._base = base
        self._durable = durable
        self._kept: dict[tuple[str, str], str] = {}  # (path, sha256 of the incoming content) -> its conflict copy

    def apply(self, archive: bytes | memoryview, task: str) -> MergeReport:
        """Raises ProtocolError, with nothing written, when the archive is not as it must be."""
        members = read_archive(archive)
        report = MergeReport()
        root = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for member in members:
                try:
                    self._take_in(root, member, task, report)
                except OSError as error:
                    report.refused[member.path] = f"could not be written ({error.strerror or error})"
        finally:
            os.close(root)
        return report

    def _take_in(self, root: int, member: Member, task: str, report: MergeReport) -> None:
        base = member.base if self._base is None else self._base.get(member.path)
        parent, path = _open_parent(root, member.path, task)
        try:
            kept = self._kept.pop((member.path, base.sha256), None) if base else None
            place = kept if kept and os.path.dirname(kept) == os.path.dirname(path) else path
            verdict = self._settle(parent, os.path.basename(place), member, base)
            number = 0
            while verdict is Verdict.CONFLICT:
                number += 1
                if number > CONFLICT_COPIES_LIMIT:
                    raise OSError(0, f"it has {CONFLICT_COPIES_LIMIT} conflict copies already")
                place = conflict_path(path, task, number)
                verdict = self._settle(parent, os.path.basename(place), member, None)
        finally:
            os.close(parent)
        if place != member.path:
            report.conflicts[member.path] = place
            if member.entry.sha256:
                self._kept[member.path, member.entry.sha256] = place
        elif verdict is Verdict.WRITE:
            report.written.append(place)

    def _settle(self, parent: int, name: str, member: Member, base: Entry | None) -> Verdict:
        """Decide on one name in an open folder, and carry it out when it is to be written."""
        local, before = _local(parent, name)
        verdict = decide(local, base, member.entry)
        if verdict is Verdict.WRITE and not self._write(parent, name, member, before):
            return Verdict.CONFLICT
        return verdict

    def _write(self, parent: int, name: str, member: Member, before: os.stat_result | None) -> bool:
        """Put a member in its place. False when somebody changed that place since `before` was seen."""
        if stat.S_ISDIR(member.entry.mode):
            os.mkdir(name, dir_fd=parent)
            return True
        temporary = f".kos-{secrets.token_hex(8)}.tmp"
        try:
            if stat.S_ISLNK(member.entry.mode):
                os.symlink(member.entry.target, temporary, dir_fd=parent)
            else:
                self._write_file(parent, temporary, member, before)
            if _signature(_status(parent, name)) != _signature(before):
                return False
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            return True
        finally:
            if _status(parent, temporary) is not None:
                os.unlink(temporary, dir_fd=parent)

    def _write_file(self, parent: int, name: str, member: Member, before: os.stat_result | None) -> None:
        executable = member.entry.mode == EXECUTABLE
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o777 if executable else 0o666, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            if before is not None and stat.S_ISREG(before.st_mode):
                # Who may read it stays as the user set it; who may read may execute.
                mode = stat.S_IMODE(before.st_mode) & 0o666
                os.fchmod(fd, mode | (mode & 0o444) >> 2 if executable else mode)
            file.write(member.content)
            file.flush()
            if self._durable:
                os.fsync(fd)


def _open_parent(root: int, path: str, task: str) -> tuple[int, str]:
    """Open the folder that a path is in, made if need be, without following a link.

    Where a name on the way is not a folder, a conflict folder beside it is used instead; the path returned says so.
    """
    *names, last = path.split("/")
    current = os.dup(root)
    taken: list[str] = []
    try:
        for name in names:
            for number in range(CONFLICT_COPIES_LIMIT):
                actual = conflict_path(name, task, number) if number else name
                inner = _enter(current, actual)
                if inner is not None:
                    break
            else:
                raise OSError(0, f"{name} is not a folder")
            os.close(current)
            current = inner
            taken.append(actual)
    except BaseException:
        os.close(current)
        raise
    return current, "/".join([*taken, last])


def _enter(parent: int, name: str) -> int | None:
    """Open a real folder, made if need be; None when something else has its name."""
    with contextlib.suppress(FileExistsError):  # the open below tells what it is
        os.mkdir(name, dir_fd=parent)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        status = _status(parent, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise  # a folder that may not be entered
        return None


def _local(parent: int, name: str) -> tuple[Entry | None, os.stat_result | None]:
    """What the user has under a name now. What is of no kind that travels compares equal to nothing."""
    before = _status(parent, name)
    if before is None:
        return None, None
    if not (stat.S_ISREG(before.st_mode) or stat.S_ISDIR(before.st_mode) or stat.S_ISLNK(before.st_mode)):
        return Entry("", 0, before.st_mode), before
    return look(name, parent)[0], before


def _status(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _signature(status: os.stat_result | None) -> Stamp | None:
    return status and (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
