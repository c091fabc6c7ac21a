"""What to do with files that come back from a copy of a folder: write, keep both, or leave alone. No file is touched.

Rules it keeps, whatever the three sides hold:
- content of the user's that differs from the base is never overwritten; both versions are kept (`Verdict.CONFLICT`);
- identical content is never a conflict, and what did not change remotely never reverts what changed locally;
- only what comes in can be written: a deletion on the other side never comes back;
- a path or link that could lead out of the folder is at fault (`path_fault`, `link_fault`) and goes nowhere.
"""

from __future__ import annotations

import enum
import posixpath
import re
import stat
from collections.abc import Mapping

import msgspec

# Never part of a workspace, in either direction: a repository's hooks must not come back from a task.
ALWAYS_LEFT_OUT = frozenset({".git", "__pycache__", ".ipynb_checkpoints", ".venv", "node_modules"})
PATH_LIMIT_BYTES = 2048  # of one relative path
NAME_LIMIT_BYTES = 240  # of one path component; file systems take 255, temporary names need some
_CONFLICT = ".kos-conflict-"

FILE = stat.S_IFREG | 0o644
EXECUTABLE = stat.S_IFREG | 0o755
FOLDER = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777


class Entry(msgspec.Struct, frozen=True):
    """One file, folder or symbolic link. `mode` is one of the four above: reading rights stay each machine's own."""

    sha256: str  # hex, of a file's content; empty for the others
    size: int
    mode: int
    target: str = ""  # of a link


Manifest = dict[str, Entry]  # by path relative to the folder, with `/`


class Verdict(enum.StrEnum):
    """What becomes of one incoming entry."""

    WRITE = "write"  # takes the place of what is there, if anything
    CONFLICT = "conflict"  # both sides changed: it is kept beside the local one
    SKIP = "skip"  # nothing to do


def same_content(one: Entry, other: Entry) -> bool:
    """Whether two entries hold the same, apart from permission to execute."""
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        return False
    return one.sha256 == other.sha256 and one.target == other.target


def equal(one: Entry, other: Entry) -> bool:
    """Whether two entries are the same in every respect that travels."""
    return one.mode == other.mode and same_content(one, other)


def decide(local: Entry | None, base: Entry | None, incoming: Entry) -> Verdict:
    """One path's verdict. `base` is what both sides started from; None where there was nothing.

    What was deleted locally is written when it changed remotely: that overwrites nothing, and loses nothing.
    """
    if base is not None and equal(base, incoming):
        return Verdict.SKIP
    if local is None:
        return Verdict.WRITE
    if equal(local, incoming):
        return Verdict.SKIP
    if base is not None and equal(local, base) and stat.S_ISDIR(local.mode) == stat.S_ISDIR(incoming.mode):
        return Verdict.WRITE
    if same_content(local, incoming):
        return Verdict.SKIP
    return Verdict.CONFLICT


def merge(local: Mapping[str, Entry], base: Mapping[str, Entry], incoming: Mapping[str, Entry]) -> dict[str, Verdict]:
    """The verdict on each incoming path."""
    return {path: decide(local.get(path), base.get(path), entry) for path, entry in incoming.items()}


def changed(base: Mapping[str, Entry], now: Mapping[str, Entry]) -> Manifest:
    """What was created or changed since `base`; never a deletion."""
    return {path: entry for path, entry in now.items() if path not in base or not equal(base[path], entry)}


def conflict_path(path: str, task: str, number: int = 1) -> str:
    """Where the incoming version goes when the local one stays: `a/NAME.kos-conflict-TASK.EXT`, then `TASK-2`."""
    folder, name = posixpath.split(path)
    stem, extension = posixpath.splitext(name)
    mark = _CONFLICT + re.sub(r"[^A-Za-z0-9._-]", "_", task) + (f"-{number}" if number > 1 else "")
    room = NAME_LIMIT_BYTES - len(mark.encode()) - len(extension.encode("utf-8", "surrogateescape"))
    if room < 1:
        stem, extension, room = name, "", NAME_LIMIT_BYTES - len(mark.encode())
    stem = stem.encode("utf-8", "surrogateescape")[: max(room, 1)].decode("utf-8", "ignore") or "file"
    return posixpath.join(folder, stem + mark + extension)


def path_fault(path: str) -> str:
    """Why a path must not be written, as the end of a sentence; empty when it may."""
    encoded = path.encode("utf-8", "surrogateescape")
    if not path or "\0" in path:
        return "is not a path"
    if path.startswith("/"):
        return "is absolute"
    if len(encoded) > PATH_LIMIT_BYTES:
        return f"is longer than {PATH_LIMIT_BYTES} bytes"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "leads out of the folder or is not in its plain form"
        if part in ALWAYS_LEFT_OUT:
            return f"is in {part}, which never travels"
        if len(part.encode("utf-8", "surrogateescape")) > NAME_LIMIT_BYTES:
            return f"has a name longer than {NAME_LIMIT_BYTES} bytes"
    return ""


def link_fault(path: str, target: str) -> str:
    """Why a symbolic link must not be made, as the end of a sentence; empty when it stays in the folder.

    `..` may stand only at the front, where it climbs from the link's own folder, which is a real one. After a name it
    would climb from wherever that name leads, so a chain of links that each look harmless could climb out.
    """
    if not target or "\0" in target or len(target.encode("utf-8", "surrogateescape")) > PATH_LIMIT_BYTES:
        return "is a link to nowhere"
    if target.startswith("/"):
        return f"is a link to the absolute path {target}"
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if ".." in parts[climbs:]:
        return f"is a link that climbs after a name ({target})"
    if climbs > path.count("/"):
        return f"is a link out of the folder ({target})"
    return ""
