"""What `kos` understands, and what it says to what it does not."""

import argparse

import pytest

from kos_cluster.cli import enginegrammar
from kos_cluster.cli.grammar import build_parser, parse
from kos_cluster.cli.parser import Shown
from kos_cluster.cli.running import check_gang
from kos_cluster.errors import UsageError
from kos_cluster.services.engines import kinds


def words(line: str) -> list[str]:
    return line.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("up", {"action": "up", "count": None}),
        ("up -n 3", {"action": "up", "count": 3, "profile": None}),
        ("up --profile fast", {"profile": "fast"}),
        ("up --label zone=a --resource licence=2", {"label": [("zone", "a")], "resource": [("licence", 2)]}),
        ("down", {"action": "down"}),
        ("node --name lab1", {"action": "node", "name": "lab1"}),
        ("cluster create lab", {"action": "create", "name": "lab", "listen": None, "node": None}),
        ("cluster create lab --listen 10.0.0.5", {"listen": ("10.0.0.5", None), "profile": "lan"}),
        ("cluster create lab --profile fast", {"profile": "fast"}),
        ("cluster create lab --listen 10.0.0.5:7000 --name desk", {"listen": ("10.0.0.5", 7000), "node": "desk"}),
        ("cluster create lab --listen [::1]:7000", {"listen": ("::1", 7000)}),
        ("cluster token", {"action": "token", "role": "node", "ttl": 86400.0, "json": False}),
        ("cluster token --role client --ttl 15m", {"role": "client", "ttl": 900.0}),
        ("cluster join lab", {"action": "join", "name": "lab", "host": None, "token": None}),
        ("cluster join lab desk:7567 --token T", {"host": ("desk", 7567), "token": "T"}),
        ("cluster create lab --resource scanner", {"resource": [("scanner", 1)], "label": []}),
        ("cluster join lab --label zone=a --label disk=ssd", {"label": [("zone", "a"), ("disk", "ssd")]}),
        ("cluster leave", {"action": "leave"}),
        ("register", {"action": "register", "name": None, "value": None, "json": False}),
        ("register x 1 --if 0", {"name": "x", "value": "1", "expected": "0", "if_unset": False}),
        ("register x --unset", {"name": "x", "value": None, "unset": True}),
        ("cluster status", {"action": "status", "json": False}),
        ("status --json", {"action": "status", "json": True}),
        ("cluster nodes --json", {"action": "nodes", "json": True}),
        ("nodes", {"action": "nodes", "json": False}),
        ("ps --json", {"action": "ps", "json": True}),
        ("cancel ab12.3", {"action": "cancel", "id": "ab12.3"}),
        ("logs ab12", {"action": "logs", "id": "ab12"}),
        ("story ab12 --json", {"action": "story", "id": "ab12", "json": True}),
        ("cluster exec desk ls -l --json", {"action": "exec", "node": "desk", "argv": ["ls", "-l", "--json"]}),
        ("run --on desk ls --on x", {"action": "run", "on": "desk", "argv": ["ls", "--on", "x"]}),
        ("cluster run -- ls", {"action": "run", "argv": ["ls"], "distribute": False}),
        ("run -- -x", {"argv": ["-x"]}),
        ("run --cpus 2 --memory 8G --timeout 15m ls", {"cpus": 2, "memory": 8 << 30, "timeout": 900.0}),
        ("run --gpus 1 --resource licence=2 ls", {"gpus": 1, "resource": [("licence", 2)], "argv": ["ls"]}),
        ("run --label zone=a --label disk!=slow ls", {"label": ["zone=a", "disk!=slow"], "argv": ["ls"]}),
        ("run --away-from n1 --near web --apart db ls", {"away_from": ["n1"], "near": ["web"], "apart": ["db"]}),
        ("run --spread ls", {"spread": True, "pack": False}),
        ("cluster exec --memory 1G --gpus 2 desk ls", {"memory": 1 << 30, "gpus": 2, "node": "desk", "argv": ["ls"]}),
        ("dry-run --cpus 2 --label zone=a", {"action": "dry_run", "cpus": 2, "label": ["zone=a"], "argv": []}),
        ("dry-run --distribute --pack a.py --json", {"distribute": True, "pack": True, "argv": ["a.py", "--json"]}),
        ("run --env A --env B=3=4 ls", {"env": [("A", None), ("B", "3=4")]}),
        ("run --distribute --over xs --out ys --seed 7", {"over": "xs", "out": "ys", "seed": 7, "argv": []}),
        ("run --distribute python a.py --cluster q", {"argv": ["python", "a.py", "--cluster", "q"], "cluster": None}),
        ("run --detach --distribute a.py --detach", {"detach": True, "argv": ["a.py", "--detach"]}),
        ("run ls", {"detach": False}),
        ("attach ab12", {"action": "attach", "id": "ab12", "files": None}),
        ("attach ab12 --files .", {"files": "."}),
        ("bench --quick --json out.json", {"action": "bench", "json": "out.json", "quick": True}),
        ("bench --peers dask,loky", {"peers": ("dask", "loky")}),
        ("bench --peers none", {"peers": ()}),
        ("bench control", {"action": "bench_control", "kills": 100, "nodes": 50, "rest_s": 600.0, "json": None}),
        ("bench control --only rates,rest --minutes 0.5 --nodes 8", {"only": ("rates", "rest"), "rest_s": 30.0}),
        ("sim", {"action": "sim", "nodes": 5, "seed": None, "seeds": 1, "faults": None, "seconds": 60.0}),
        ("sim --nodes 3 --seed 7 --faults none --minutes 0.5", {"nodes": 3, "seed": 7, "faults": (), "seconds": 30.0}),
        ("sim --faults crash,loss --seeds 9 --processes 2", {"faults": ("crash", "loss"), "seeds": 9, "processes": 2}),
        ("sim --mutants --trace", {"mutants": True, "trace": True}),
        ("--cluster lab nodes", {"cluster": "lab"}),
        ("nodes --cluster lab", {"cluster": "lab"}),
    ],
)
def test_understands(line: str, expected: dict[str, object]) -> None:
    parsed = vars(parse(words(line)))
    assert {name: parsed[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "mentions", "hint"),
    [
        ("", "COMMAND", "kos --help"),
        ("fly", "'fly'", "kos --help"),
        ("cluster", "COMMAND", "kos cluster --help"),
        ("cluster fly", "'fly'", "kos cluster --help"),
        ("up -n 0", "'0' is not a whole number", "kos up --help"),
        ("up -n many", "'many' is not a whole number", "kos up --help"),
        ("cluster token --role king", "'king'", "kos cluster token --help"),
        ("cluster token --ttl 25h", "at most 24h", "kos cluster token --help"),
        ("cluster token --ttl soon", "'soon' is not a duration", "kos cluster token --help"),
        ("cluster join", "NAME", "kos cluster join --help"),
        ("cluster join lab desk:port", "'desk:port' is not an address", "kos cluster join --help"),
        ("cluster join lab desk:65535", "65535 cannot be a node's port", "kos cluster join --help"),
        ("run --memory lots ls", "'lots' is not an amount of memory", "8G"),
        ("run --label zone ls", "'zone' is not a label", "zone=a"),
        ("run --resource licence=0 ls", "'0' is not a whole number", "kos run --help"),
        ("run --resource li+ce=1 ls", "'li+ce=1' is not a resource", "kos run --help"),
        ("run --spread --pack ls", "not allowed with", "kos run --help"),
        ("up --label zone!=a", "'zone!=a' is not a label of a node", "kos up --help"),
        ("run --env 1=2 ls", "'1' is not the name", "kos run --help"),
        ("run --distrib x.py", "--distrib", "kos run --help"),
        ("bench --peers abacus", "'abacus'", "kos bench --help"),
        ("bench control --only abacus", "'abacus' is not a measure", "kos bench control --help"),
        ("up --profile slow", "'slow'", "kos up --help"),
        ("sim --faults meteor", "'meteor' is not a known fault", "kos sim --help"),
        ("sim --nodes 500", "500 hosts are too many", "kos sim --help"),
        ("sim --minutes 0", "'0' is not a number of minutes; write for example 10 or 0.5", "kos sim --help"),
        ("sim --membership --hours 2h", "'2h' is not a number of hours", "kos sim --help"),
        ("cancel", "ID", "kos cancel --help"),
        ("nodes --colour", "--colour", "kos nodes --help"),
    ],
)
def test_refuses(line: str, mentions: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words(line))
    assert mentions in caught.value.message
    assert hint in caught.value.hint


def test_help_of_every_command_can_be_shown() -> None:
    def walk(parser: argparse.ArgumentParser) -> int:
        shown = len(parser.format_help()) > 0
        children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        return shown + sum(walk(child) for action in children for child in set(action.choices.values()))

    assert walk(build_parser()) > 20


@pytest.mark.parametrize("line", ["--help", "-h", "cluster --help", "run --help", "cluster exec -h", "--version"])
def test_shows_without_printing_or_exiting(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Shown) as caught:
        parse(words(line))
    assert "kos" in caught.value.text
    assert capsys.readouterr() == ("", "")


def test_every_action_has_its_function() -> None:
    from kos_cluster.cli.main import MODULES, _action

    names = {name for names in MODULES.values() for name in names}
    assert {"up", "exec", "bench", "story"} <= names
    assert all(callable(_action(name)) for name in names - {"exec", "run"})


@pytest.mark.parametrize(
    "words", ["--gang 2 --detach", "--gang 2 --distribute", "--gang 2 --retries 1", "--restarts 2", "--gang 0"]
)
def test_what_does_not_go_with_a_gang_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match="--gang"):
        check_gang(parse(["run", *words.split(), "hostname"]))


def test_a_priority_is_a_whole_number_within_its_limits() -> None:
    assert parse(["run", "--priority", "-3", "hostname"]).priority == -3
    for text in ("11", "-11", "high", "1.5", "9" * 40):
        with pytest.raises(UsageError, match="is not a priority; write a whole number from -10 to 10"):
            parse(["run", "--priority", text, "hostname"])


def test_the_engines_that_can_be_typed_are_those_that_there_are() -> None:
    assert enginegrammar.KINDS == kinds.KINDS
