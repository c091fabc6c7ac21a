"""The majority rules on cases that others wrote: single majorities, and two joint ones.

KOS changes one voter at a time and needs no joint majority; such cases are decided here by composition (the minimum,
the conjunction), which shows the parts right in odd corners.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.core.raft.quorum import UNBOUNDED, Outcome, majority_commit, vote_outcome

FILES = {"majority_commit.txt": 16, "majority_vote.txt": 22, "joint_commit.txt": 50, "joint_vote.txt": 39}
ARGUMENT = re.compile(r"(\w+)=(?:\(([^)]*)\)|(\w+))")
OUTCOMES = {"VotePending": Outcome.PENDING, "VoteWon": Outcome.WON, "VoteLost": Outcome.LOST}


def directives(path: Path) -> Iterator[tuple[str, dict[str, list[str]], str]]:
    """Each directive of a file: its name, its arguments as lists, and the last line of its expected output."""
    for block in re.split(r"\n(?=(?:committed|vote)\b)", path.read_text()):
        head, _, output = block.partition("\n----\n")
        line = head.strip().splitlines()[-1]
        if not re.match(r"committed|vote", line):
            continue
        arguments = {
            name: [part.strip() for part in inner.split(",")] if inner else []
            for name, inner, _ in ARGUMENT.findall(line)
        }
        yield line.split()[0], arguments, output.split("\n\n")[0].strip().splitlines()[-1]


def spread(arguments: dict[str, list[str]], name: str) -> dict[str, str]:
    """The given values by voter: they stand in the order in which the voters are first named."""
    voters = list(dict.fromkeys(arguments.get("cfg", []) + arguments.get("cfgj", [])))
    values = arguments.get(name, [])
    assert len(values) == len(voters), arguments
    return {voter: value for voter, value in zip(voters, values, strict=True) if value != "_"}


def committed(arguments: dict[str, list[str]]) -> int:
    reached = {voter: int(value) for voter, value in spread(arguments, "idx").items()}
    return min(majority_commit(arguments.get(part, []), reached) for part in ("cfg", "cfgj"))


def vote(arguments: dict[str, list[str]]) -> Outcome:
    votes = {voter: value == "y" for voter, value in spread(arguments, "votes").items()}
    outcomes = {vote_outcome(arguments.get(part, []), votes) for part in ("cfg", "cfgj")}
    if Outcome.LOST in outcomes:
        return Outcome.LOST
    return Outcome.PENDING if Outcome.PENDING in outcomes else Outcome.WON


@pytest.mark.parametrize("name", FILES)
def test_majorities_decide_as_in_the_cases(cases: Path, name: str) -> None:
    seen = 0
    for directive, arguments, expected in directives(cases / "raft-quorum" / name):
        seen += 1
        if directive == "vote":
            assert vote(arguments) is OUTCOMES[expected], arguments
        else:
            wanted = UNBOUNDED if expected.endswith("∞") else int(expected)
            assert committed(arguments) == wanted, arguments
    assert seen == FILES[name]
