"""A working directory that travels: what is in it, its archive, and the copy that a worker works in.

Rules it keeps:
- same content, same archive, byte for byte: times, owners and permissions other than "executable" are left out;
- what travels is bounded by WORKSPACE_LIMIT_BYTES and WORKSPACE_LIMIT_ENTRIES, told before anything is read;
- KOS_HOME never travels, as it holds the user's and the nodes' keys;
- an archive is not trusted: it holds plain files, folders and links that stay inside, each path once, or is refused;
- an unpacked copy carries no trace that the user sees: what it was unpacked from is noted beside the folder, not in it.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pathspec

from kos_cluster.core.merging import (
    ALWAYS_LEFT_OUT,
    EXECUTABLE,
    FILE,
    FOLDER,
    LINK,
    Entry,
    Manifest,
    link_fault,
    path_fault,
)
from kos_cluster.errors import LimitError, ProtocolError, StateError, UsageError
from kos_cluster.home import Home

WORKSPACE_LIMIT_BYTES = 100 << 20  # of all files together, in either direction
WORKSPACE_LIMIT_ENTRIES = 50_000  # files, folders and links
IGNORE_FILE = ".kosignore"
IGNORE_LIMIT_BYTES = 256 << 10
# Every unpacked file bears this time, so that any later write shows. 1980: a zip file can hold nothing earlier.
SEALED_NS = 315_619_200 * 10**9
_LARGEST_NAMED = 5
_BASE_HEADER = "KOS.base"  # of an archived change: what it was changed from


class Member(NamedTuple):
    """One entry of an archive. `base` is what a change was made from; None where there was nothing, or nobody said."""

    path: str
    entry: Entry
    content: bytes
    base: Entry | None = None


@dataclass(frozen=True)
class Snapshot:
    """A folder at one moment, its files' contents included, so that manifest and archive cannot disagree."""

    folder: Path
    manifest: Manifest
    contents: dict[str, bytes] = field(repr=False)
    left_out: dict[str, str]  # path -> why, as the end of a sentence


@dataclass(frozen=True)
class Base:
    """What a copy was unpacked from. `noted_ns` is the file system's time when it was complete."""

    manifest: Manifest
    ignore: str
    noted_ns: int


def readable_size(size: int) -> str:
    """A size as people read it: "3.4 MiB"."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def ignoring(text: str, where: str) -> Callable[[str, bool], bool]:
    """The rule that a `.kosignore` states: whether a relative path (and whether it is a folder) is left out."""
    try:
        spec = pathspec.GitIgnoreSpec.from_lines(text.splitlines())
    except ValueError as error:
        raise UsageError(f"{where} holds a pattern that is none: {error}.", "Write it as in .gitignore.") from None
    if not spec.patterns:
        return lambda path, is_folder: False
    return lambda path, is_folder: bool(spec.match_file(path + "/" if is_folder else path))


def walk(folder: Path, skip: Callable[[str, bool], bool]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry beneath a folder that may travel, links not followed. What vanishes meanwhile is passed over."""
    waiting = [("", os.fspath(folder))]
    while waiting:
        prefix, place = waiting.pop()
        try:
            entries = list(os.scandir(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            path = prefix + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name in ALWAYS_LEFT_OUT or skip(path, is_folder):
                continue
            yield path, entry
            if is_folder:
                waiting.append((path + "/", entry.path))


def snapshot(folder: Path) -> Snapshot:
    """Read a folder. Raises LimitError when it is too large, UsageError when it or its `.kosignore` cannot be read."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    left_out: dict[str, str] = {}
    try:
        found = _survey(folder, left_out)
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read.", f"Name it in {folder / IGNORE_FILE}.") from None
    manifest: Manifest = {}
    contents: dict[str, bytes] = {}
    for path in sorted(found):
        try:
            entry, content = look(folder / path)
        except FileNotFoundError:
            continue
        except OSError as error:
            left_out[path] = f"cannot be read ({error.strerror})"
            continue
        if stat.S_ISLNK(entry.mode) and (fault := link_fault(path, entry.target)):
            left_out[path] = fault
            continue
        manifest[path] = entry
        if stat.S_ISREG(entry.mode):
            contents[path] = content
    _check_size({path: entry.size for path, entry in manifest.items()}, folder)
    return Snapshot(folder, manifest, contents, left_out)


def _survey(folder: Path, left_out: dict[str, str]) -> list[str]:
    """The paths that travel, by their sizes as listed, so that a folder far too large is refused before it is read."""
    ignored = ignoring(read_ignore(folder), os.fspath(folder / IGNORE_FILE))
    private = _private_in(folder)

    def skip(path: str, is_folder: bool) -> bool:
        if path == private:
            left_out[path] = "holds the keys and the state of KOS"
        return path == private or ignored(path, is_folder)

    sizes: dict[str, int] = {}
    for path, entry in walk(folder, skip):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            left_out[path] = "is a socket, pipe or device"
        elif fault := path_fault(path):
            left_out[path] = fault
        else:
            sizes[path] = status.st_size if kind == stat.S_IFREG else 0
        if len(sizes) > WORKSPACE_LIMIT_ENTRIES:
            break
    _check_size(sizes, folder)
    return list(sizes)


def _private_in(folder: Path) -> str:
    """Where in the folder KOS_HOME is, or empty. Raises UsageError for a folder in it, but for a worker's copy."""
    home = Home().path.resolve()
    if folder.is_relative_to(home) and folder.relative_to(home).parts[2:3] != ("run",):  # clusters/NAME/run
        raise UsageError(f"{folder} is in {home}, which holds KOS's keys and never travels.", "Work in another folder.")
    return home.relative_to(folder).as_posix() if home.is_relative_to(folder) else ""


def _check_size(sizes: Mapping[str, int], folder: Path) -> None:
    total = sum(sizes.values())
    if total <= WORKSPACE_LIMIT_BYTES and len(sizes) <= WORKSPACE_LIMIT_ENTRIES:
        return
    largest = heapq.nlargest(_LARGEST_NAMED, sizes.items(), key=lambda item: item[1])
    named = ", ".join(f"{path} ({readable_size(size)})" for path, size in largest)
    if len(sizes) > WORKSPACE_LIMIT_ENTRIES:
        what = f"{folder} holds more than {WORKSPACE_LIMIT_ENTRIES} files and folders, too many to send"
    else:
        what = f"{folder} holds {readable_size(total)}; {readable_size(WORKSPACE_LIMIT_BYTES)} can be sent"
    raise LimitError(f"{what}. The largest: {named}.", f"Name what is not needed in {folder / IGNORE_FILE}.")


def read_ignore(folder: Path) -> str:
    """The text of the folder's `.kosignore`; empty when it has none."""
    try:
        with (folder / IGNORE_FILE).open("rb") as file:
            return file.read(IGNORE_LIMIT_BYTES).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def look(path: Path | str, dir_fd: int | None = None) -> tuple[Entry, bytes]:
    """An entry with its content. No link is followed. Raises OSError when it cannot be read or may not travel."""
    status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return Entry("", 0, FOLDER), b""
    if stat.S_ISLNK(status.st_mode):
        return Entry("", 0, LINK, os.readlink(path, dir_fd=dir_fd)), b""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a plain file", os.fspath(path))
        content = file.read(WORKSPACE_LIMIT_BYTES + 1)
    mode = EXECUTABLE if status.st_mode & stat.S_IXUSR else FILE
    return Entry(hashlib.sha256(content).hexdigest(), len(content), mode), content


# ---- archives


def pack(taken: Snapshot) -> bytes:
    """The archive of a snapshot; equal for equal content."""
    return write_archive(Member(path, entry, taken.contents.get(path, b"")) for path, entry in taken.manifest.items())


def write_archive(members: Iterable[Member]) -> bytes:
    """A tar of the members, sorted by path, with nothing in it that differs from machine to machine."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, entry, content, base in sorted(members, key=lambda member: member.path):
            info = tarfile.TarInfo(path)
            info.mode = stat.S_IMODE(entry.mode)
            if base is not None:
                info.pax_headers = {_BASE_HEADER: json.dumps([base.sha256, base.size, base.mode, base.target])}
            if stat.S_ISDIR(entry.mode):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif stat.S_ISLNK(entry.mode):
                info.type = tarfile.SYMTYPE
                info.linkname = entry.target
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_archive(archive: bytes | memoryview) -> list[Member]:
    """The members of an archive, folders before what is in them. Raises ProtocolError when any is not as it must be."""
    members: dict[str, Member] = {}
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for info in tar:
                member = _member(info, archive)
                total += member.entry.size
                if member.path in members:
                    raise ProtocolError(f"An archive holds {member.path!r} twice.")
                if len(members) >= WORKSPACE_LIMIT_ENTRIES or total > WORKSPACE_LIMIT_BYTES:
                    raise ProtocolError("An archive holds more than may be sent.")
                members[member.path] = member
    except (tarfile.TarError, ValueError, LookupError, OSError, EOFError) as error:
        raise ProtocolError(f"An archive is damaged: {error}.") from error
    for path in members:
        for parent in Path(path).parents:
            above = members.get(os.fspath(parent))
            if above is not None and not stat.S_ISDIR(above.entry.mode):
                raise ProtocolError(f"An archive holds {path!r} beneath {above.path!r}, which is not a folder.")
    return [members[path] for path in sorted(members)]


def _member(info: tarfile.TarInfo, archive: bytes | memoryview) -> Member:
    path = info.name
    if fault := path_fault(path):
        raise ProtocolError(f"An archive holds {path!r}, which {fault}.")
    header = info.pax_headers.get(_BASE_HEADER)
    base = Entry(*json.loads(header)) if header else None
    if info.type == tarfile.DIRTYPE:
        return Member(path, Entry("", 0, FOLDER), b"", base)
    if info.type == tarfile.SYMTYPE:
        if fault := link_fault(path, info.linkname):
            raise ProtocolError(f"An archive holds {path!r}, which {fault}.")
        return Member(path, Entry("", 0, LINK, info.linkname), b"", base)
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
        raise ProtocolError(f"An archive holds {path!r}, which is neither a plain file, a folder nor a symbolic link.")
    content = bytes(archive[info.offset_data : info.offset_data + info.size])
    if len(content) != info.size:
        raise ProtocolError(f"An archive ends within {path!r}.")
    mode = EXECUTABLE if info.mode & stat.S_IXUSR else FILE
    return Member(path, Entry(hashlib.sha256(content).hexdigest(), len(content), mode), content, base)


# ---- the copy


def unpack(archive: bytes | memoryview, folder: Path) -> None:
    """Make a working copy in an empty folder, and note beside it what it was made from (`base_file`).

    Raises ProtocolError, with nothing written, when the archive is not as it must be; StateError when the folder holds
    something already.
    """
    members = read_archive(archive)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if any(folder.iterdir()):
        raise StateError(f"{folder} is not empty, so a workspace cannot be unpacked in it.")
    for path, entry, content, _ in members:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(entry.mode):
            place.mkdir(exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            place.symlink_to(entry.target)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(place, flags, stat.S_IMODE(entry.mode)), "wb") as file:
                file.write(content)
        os.utime(place, ns=(SEALED_NS, SEALED_NS), follow_symlinks=False)
    manifest = {path: [entry.sha256, entry.size, entry.mode, entry.target] for path, entry, _, _ in members}
    # json and not MessagePack: file names need not be UTF-8.
    note = base_file(folder)
    note.parent.mkdir(mode=0o700)
    note.write_text(json.dumps({"ignore": read_ignore(folder), "manifest": manifest}))


def base_file(folder: Path) -> Path:
    """Where `unpack` notes what it unpacked: beside the folder, so that the user's code does not come across it.

    It is in a folder whose name ends as the workspace's does, which is how both are found when their worker has ended.
    """
    return folder.with_name(f".kos-base-{folder.name}") / "base.json"


def read_base(folder: Path) -> Base:
    """What a copy was unpacked from. Raises StateError when the folder is no such copy."""
    file = base_file(folder)
    try:
        noted = json.loads(file.read_text())
        manifest = {path: Entry(*values) for path, values in noted["manifest"].items()}
        return Base(manifest, noted["ignore"], file.stat().st_mtime_ns)
    except FileNotFoundError:
        raise StateError(f"{folder} is not an unpacked workspace.") from None
    except (ValueError, LookupError, TypeError) as error:
        raise StateError(f"{file} is damaged ({error}).") from None


def workspace_around(folder: Path) -> Path | None:
    """The unpacked workspace that a folder is, or is in; None when it is in none."""
    folder = folder.resolve()
    return next((place for place in (folder, *folder.parents) if place.name and base_file(place).is_file()), None)
