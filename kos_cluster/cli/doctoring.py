"""`kos doctor`: what is wrong on this machine and in its cluster, each with the line that mends it.

Rules: 1 when something fails, else 0. A finding is shown as soon as it is made.
"""

from __future__ import annotations

import argparse

from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import printable
from kos_cluster.home import Home
from kos_cluster.services.doctor import Finding, Verdict, examine

EXIT_FAILS = 1


def doctor_(parsed: argparse.Namespace, console: Console) -> int:
    """Examine, and tell."""
    findings: list[Finding] = []
    for finding in examine(Home(), parsed.cluster):
        findings.append(finding)
        if not parsed.json:
            console.answer(printable(f"{finding.verdict:<4}  {finding.check}: {finding.said}"))
            if finding.mend:
                console.answer(printable(f"      mend: {finding.mend}"))
    if parsed.json:
        console.json(findings)
    return EXIT_FAILS if any(finding.verdict is Verdict.FAIL for finding in findings) else 0
