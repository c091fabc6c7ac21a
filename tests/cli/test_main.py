"""Exit codes, sentences and reports: how the command ends."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.cli import looking
from kos_cluster.cli.main import CRASH_REPORTS_LIMIT, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_PIPE, run
from kos_cluster.errors import ProtocolError, UsageError

Kos = Callable[..., subprocess.CompletedProcess[str]]


def ending(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return run(words, out, err), out.getvalue(), err.getvalue()


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(looking, "nodes_", fail)


@pytest.fixture
def home(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KOS_HOME", str(short_folder))
    return short_folder


def test_a_command_does_not_load_what_only_ranks_of_gangs_need() -> None:
    """numpy would be a quarter of its start."""
    code = "import sys, kos_cluster.cli.looking, kos_cluster.tasks.cluster as c; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "code", "mentions"),
    [
        ("nodes", 3, "in no cluster"),
        ("status --json", 3, "kos up"),
        ("ps", 3, "in no cluster"),
        ("story ab12", 3, "in no cluster"),
        ("run ls", 3, "in no cluster"),
        ("register x", 3, "in no cluster"),
        ("register x --if 1", 2, "are for writing"),
        ("register x 1 --unset", 2, "or removed with --unset"),
        ("cluster exec desk ls", 3, "in no cluster"),
        ("cluster token", 3, "in no cluster"),
        ("cluster leave", 3, "in no cluster"),
        ("node", 3, "in no cluster"),
        ("nodes --cluster lab", 3, "not in a cluster named 'lab'"),
        ("up --cluster lab", 3, "kos cluster join lab"),
        ("down --cluster lab", 3, "'lab'"),
        ("nodes --cluster ../lab", 2, "cannot be a name"),
        ("cluster create ../lab", 2, "cannot be a name"),
        ("cluster create lab --name a/b", 2, "cannot be a name"),
        ("up -n 1000", 2, "too many"),
        ("run", 2, "kos run --distribute script.py"),
        ("cluster exec desk", 2, "No command"),
        ("run --over xs ls", 2, "notebook's cell"),
        ("run --engine dask ls", 2, "notebook's cell"),
        ("run --out ys ls", 2, "notebook's cell"),
        ("run --no-redirect ls", 2, "--distribute"),
        ("run --env KOS_ABSENT ls", 2, "KOS_ABSENT is not set"),
        ("fly", 2, "'fly'"),
    ],
)
def test_bad_input_is_a_sentence_and_a_code(words: str, code: int, mentions: str, kos: Kos) -> None:
    done = kos(*words.split())
    assert done.returncode == code, done.stderr
    assert mentions in done.stderr
    assert done.stderr.startswith("kos: ")
    assert done.stdout == ""


def test_several_clusters_must_be_told_apart(kos: Kos, short_folder: Path) -> None:
    for name in ("lab", "rack"):
        folder = short_folder / "clusters" / name
        folder.mkdir(parents=True)
        (folder / "cluster.json").write_text(f'{{"name": "{name}", "ca_sha256": ""}}')
    done = kos("nodes")
    assert done.returncode == 2
    assert "lab, rack" in done.stderr
    assert "--cluster" in done.stderr
    assert "'lab' does not run" in kos("down", "--cluster", "lab").stdout
    assert "'rack' does not run" in kos("down", KOS_CLUSTER="rack").stdout
    assert "'lab' does not run" in kos("--cluster", "lab", "down", KOS_CLUSTER="rack").stdout


def test_a_damaged_cluster_file_says_what_to_do(kos: Kos, short_folder: Path) -> None:
    folder = short_folder / "clusters" / "lab"
    folder.mkdir(parents=True)
    (folder / "cluster.json").write_text("{")
    done = kos("up")
    assert done.returncode == 16
    assert "damaged" in done.stderr
    assert "join again" in done.stderr


def test_a_home_that_is_no_folder_is_named(kos: Kos, short_folder: Path) -> None:
    (short_folder / "file").write_text("")
    done = kos("up", KOS_HOME=str(short_folder / "file"))
    assert done.returncode == 16
    assert str(short_folder / "file") in done.stderr


def test_help_and_version_go_to_stdout(kos: Kos) -> None:
    assert "usage: kos" in kos("--help").stdout
    assert kos("--version").stdout.startswith("kos 0.")
    assert kos("cluster", "join", "--help").returncode == 0


def test_down_with_nothing_up_is_fine(kos: Kos, short_folder: Path) -> None:
    for _ in range(2):
        done = kos("down")
        assert done.returncode == 0
        assert "does not run" in done.stdout
    assert not list(short_folder.glob("clusters/*"))


def test_an_error_in_kos_goes_to_a_report(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, ZeroDivisionError("it broke"))
    code, out, err = ending("nodes")
    assert (code, out) == (EXIT_INTERNAL, "")
    (report,) = (home / "crashes").iterdir()
    assert str(report) in err
    assert "Traceback" not in err
    assert "ZeroDivisionError: it broke" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0


def test_reports_are_bounded_and_hold_no_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "crashes"
    folder.mkdir()
    for number in range(CRASH_REPORTS_LIMIT + 5):
        (folder / f"2020-{number:02}.txt").write_text("old")
    failing_with(monkeypatch, ZeroDivisionError())
    monkeypatch.setattr("kos_cluster.cli.members.join_", looking.nodes_)
    ending("cluster", "join", "lab", "desk", "--token=KOS1.aa.bb.cc")
    reports = sorted(folder.iterdir())
    assert len(reports) == CRASH_REPORTS_LIMIT
    assert "KOS1" not in reports[-1].read_text()


def test_a_cluster_that_no_beacon_tells_of_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kos_cluster.cli.members.BEACON_TIMEOUT_S", 0.05)
    token = f"KOS1.{'0' * 64}.{'1' * 12}.{'2' * 32}"
    code, out, err = ending("cluster", "join", "attic", "--token", token)
    assert (code, out) == (4, "")
    assert "'attic' was heard" in err
    assert "kos cluster join attic HOST" in err


def test_an_interrupt_is_130(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(monkeypatch, KeyboardInterrupt())
    assert ending("nodes") == (EXIT_INTERRUPTED, "", "kos: interrupted.\n")


def test_a_reader_that_went_away_is_quiet(short_folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [str(Path(sys.executable).with_name("kos")), "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (EXIT_PIPE, b"")


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from kos_cluster.cli.main import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    loaded: set[Any] = set(done.stdout.split())
    assert not loaded & {"zmq", "cryptography", "numpy", "msgspec", "rich", "asyncio", "platformdirs", "ssl"}


def test_an_error_that_names_no_next_step_sends_to_the_doctor(home: Path, monkeypatch: pytest.MonkeyPatch):
    failing_with(monkeypatch, ProtocolError("A malformed message arrived."))
    assert ending("nodes")[2] == "kos: A malformed message arrived. Type 'kos doctor' to look for the cause.\n"
    failing_with(monkeypatch, UsageError("That was wrong.", "Type it right."))
    assert ending("nodes")[2] == "kos: That was wrong. Type it right.\n"
