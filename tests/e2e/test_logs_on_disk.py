"""What a node finds on its disk when it starts: a log that is damaged, or has an entry of a version to come."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster import errors
from kos_cluster.core.raft import Entry, Kind, Persist
from kos_cluster.core.replicated import commands
from kos_cluster.node.raftlog import RaftLog
from tests.e2e.fleet import home_of
from tests.e2e.test_cluster import Lab

NODE = "desk"
JOIN_AGAIN = "Remove this node from the cluster on another node, delete its state here, and let it join again."
UPGRADE = "Install the version of kos-cluster"


def test_a_damaged_log_is_refused_and_an_entry_of_tomorrow_not_passed_over(
    machine: Any, until: Callable[..., Any], tmp_path: Path
) -> None:
    Lab(machine)
    machine.ok("down")
    log = home_of(machine).node(NODE) / "raft.sqlite"
    whole = {path: shutil.copy(path, tmp_path) for path in log.parent.glob("raft.sqlite*")}

    damage(log)
    damaged = log.read_bytes()
    refused = machine.kos("up")
    assert (refused.returncode, refused.stdout) == (errors.StateError.exit_code, "")
    said = (
        f"The log of the replicated state, {log}, holds an entry 3 that is not the one that was written. {JOIN_AGAIN}"
    )
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert machine.processes() == []
    assert log.read_bytes() == damaged, "nothing was mended by guessing"

    for path, copy in whole.items():
        shutil.copy(copy, path)
    tomorrow = append_of_tomorrow(log)
    machine.ok("up")
    until(lambda: UPGRADE in machine.ok("status"), "it says why it decides nothing")
    assert machine.ok("run", "echo", "works") == "works\n", "the daemon goes on"
    doctor = machine.kos("doctor", "--json")
    (finding,) = (each for each in msgspec.json.decode(doctor.stdout) if each["check"] == f"decisions of {NODE}")
    assert (doctor.returncode, finding["verdict"], UPGRADE in finding["said"]) == (1, "fail", True)
    assert finding["mend"]
    machine.ok("down")
    with closing(opened(log)) as after:
        assert tomorrow in after.load().entries, "nothing was lost"


def damage(log: Path) -> None:
    """Change one bit of an entry that was written long ago."""
    with closing(sqlite3.connect(log)) as db, db:
        (data,) = db.execute("SELECT data FROM entries WHERE idx = 3").fetchone()
        db.execute("UPDATE entries SET data = ? WHERE idx = 3", (data[:-1] + bytes((data[-1] ^ 1,)),))


def append_of_tomorrow(log: Path) -> Entry:
    """Write a command at the end of the log that this version cannot know."""
    with closing(opened(log)) as file:
        disk = file.load()
        last = disk.entries[-1]
        entry = Entry(last.index + 1, last.term, Kind.COMMAND, bytes((commands.FORMAT + 1,)) + b"of tomorrow")
        file.write(Persist(0, disk.hard_state, disk.entries[0].index, (entry,)))
    return entry


def opened(log: Path) -> RaftLog:
    with closing(sqlite3.connect(log)) as db:
        (mark,) = db.execute("SELECT mark FROM mark").fetchone()
    return RaftLog(log, msgspec.msgpack.decode(mark)["group"])
