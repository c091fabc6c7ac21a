"""`kos doctor` on a cluster that is well, and on one that is dead."""

from __future__ import annotations

import os
import signal
from typing import Any


def test_a_cluster_that_is_well_and_then_dead(machine: Any) -> None:
    machine.ok("up", "-n", "2")
    findings = {finding["check"]: finding for finding in machine.json("doctor")}
    assert {finding["verdict"] for finding in findings.values()} <= {"ok", "warn"}
    looked_at = (
        "versions", "shared memory", "disk", "open files", "certificate of node1", "address of node2",
        "control port of node1", "bulk port of node2", "nodes", "clock of node2", "versions of node1", "quorum",
        "authority's key",
    )  # fmt: skip
    assert {findings[check]["verdict"] for check in looked_at[3:]} == {"ok"}
    assert "1 voter, 1 taking part, 1 needed" in findings["quorum"]["said"]
    for row in machine.json("nodes"):
        os.kill(row["pid"], signal.SIGKILL)
    dead = machine.kos("doctor")
    assert (dead.returncode, dead.stderr) == (1, "")
    assert "warn  node node1: node1 does not run.\n      mend: Type 'kos up'.\n" in dead.stdout
    assert "fail  cluster: No node of cluster 'local' " in dead.stdout
    machine.ok("down")
