"""Running scripts and commands from the submitter's side, on a stand-in for the cluster."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.core.records import TaskState
from kos_cluster.errors import LimitError, UnreachableError, UsageError
from kos_cluster.tasks import launching
from kos_cluster.tasks.launching import run_command, run_script
from kos_cluster.tasks.why import Why
from tests.tasks.stand_in import StandIn, StandInJob


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StandIn]:
    (tmp_path / "nodes").mkdir()
    made = StandIn(tmp_path / "nodes")
    yield made
    made.stop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "sub").mkdir(parents=True)
    (folder / "log.txt").write_text("old")
    return folder


def script(home: Path, text: str, name: str = "script.py") -> None:
    (home / name).write_text(text)


def test_a_script_runs_in_a_copy_and_what_it_writes_comes_back(cluster: StandIn, home: Path) -> None:
    script(home, "import os, sys\nopen('out.txt', 'w').write(f'{sys.argv} {os.getcwd()}')\nsys.exit(3)\n")
    said: list[str] = []
    assert run_script(cluster, ["python", "script.py", "x", "script.py"], home, report=said.append) == 3
    argv, _, cwd = (home / "out.txt").read_text().partition("] ")
    assert argv == "['script.py', 'x', 'script.py'"
    assert not Path(cwd).is_relative_to(home)
    assert said == ["1 file or folder written."]
    (job,) = cluster.jobs
    assert job.spec.options.retries == 0
    assert job.spec.environment.fresh


def test_a_script_in_a_folder_below_and_by_its_full_path(cluster: StandIn, home: Path) -> None:
    script(home, "import near\nopen('who', 'a').write(near.X)\n", "sub/script.py")
    script(home, "X = 'near'\n", "sub/near.py")
    assert run_script(cluster, ["sub/script.py"], home) == 0
    assert (home / "who").read_text() == "near"
    assert run_script(cluster, [os.fspath(home / "sub" / "script.py")], home) == 0
    assert (home / "who").read_text() == "nearnear"


def test_what_the_user_changed_meanwhile_is_kept(
    cluster: StandIn, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(home, f"open('log.txt', 'w').write('theirs'); open({os.fspath(home / 'log.txt')!r}, 'w').write('mine')")
    assert run_script(cluster, ["script.py"], home) == 0
    assert (home / "log.txt").read_text() == "mine"
    assert (home / "log.kos-conflict-j0.0.txt").read_text() == "theirs"
    assert capsys.readouterr().err.splitlines() == [
        "kos: log.txt has changed here too; the cluster's version is log.kos-conflict-j0.0.txt."
    ]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nowhere.py"], r"There is no script nowhere\.py in .*home\. The path searched is .*home/nowhere\.py"),
        (["sub"], "There is no script sub"),
        (["../outside.py"], "is not in .*home, and only that folder is sent"),
        (["ignored.py"], "left out by .kosignore"),
        (["away.py"], "cannot be sent: it is a link to the absolute path"),
        (["python", "-c", "print()"], "not python -c"),
        (["python"], "No script"),
        ([], "No script"),
    ],
)
def test_a_script_that_cannot_run_is_refused(cluster: StandIn, home: Path, argv: list[str], sentence: str) -> None:
    script(home, "", "../outside.py")
    script(home, "", "ignored.py")
    script(home, "ignored.py", ".kosignore")
    (home / "away.py").symlink_to(home.parent / "outside.py")
    with pytest.raises(UsageError, match=sentence):
        run_script(cluster, argv, home)
    assert cluster.jobs == []


def test_what_stays_here_is_told(cluster: StandIn, home: Path) -> None:
    script(home, "")
    (home / "data").symlink_to("/")
    said: list[str] = []
    assert run_script(cluster, ["script.py"], home, report=said.append) == 0
    assert said == ["data stays here: it is a link to the absolute path /."]


def test_what_is_too_large_to_come_back_is_an_error_and_the_rest_comes(cluster: StandIn, home: Path) -> None:
    script(home, "open('huge.bin', 'wb').truncate((100 << 20) + 1); open('small', 'w').write('kept')")
    with pytest.raises(LimitError, match=r"huge\.bin is too large to come back"):
        run_script(cluster, ["script.py"], home)
    assert (home / "small").read_text() == "kept"
    assert not (home / "huge.bin").exists()


def test_commands_take_no_files_along(cluster: StandIn, home: Path, tmp_path: Path) -> None:
    place = tmp_path / "where"
    assert run_command(cluster, f"echo $A > {place}; exit 6", env={"A": "b c"}) == 6
    assert place.read_text() == "b c\n"
    assert run_command(cluster, ["sh", "-c", "exit $0", "7"]) == 7
    assert all(not job.spec.environment.workspace for job in cluster.jobs)
    with pytest.raises(UsageError, match="No command"):
        run_command(cluster, [])
    with pytest.raises(UsageError, match="No command"):
        run_command(cluster, "")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (TaskState.SENT, ["it has not begun: that is why. Type 'kos why j0.0' later to see more."]),
        (TaskState.RUNNING, []),
    ],
)
def test_what_lasts_is_told_of_only_if_it_has_not_begun(
    cluster: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch, state: TaskState, said: list[str]
) -> None:
    monkeypatch.setattr(launching, "TOLD_AFTER_S", 0.05)
    go, told = home / "go", []

    def why(task: str) -> list[Why]:
        go.touch()
        return [Why(task, 1, state, "n0", "that is why")]

    monkeypatch.setattr(cluster, "why", why)
    command = f"until test -e {go}; do sleep 0.01; done; exit 6"
    assert run_command(cluster, command, report=told.append) == 6
    assert told == said


def test_where_it_is_may_not_be_known(cluster: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "TOLD_AFTER_S", 0.05)
    go, told = home / "go", []

    def why(task: str) -> list[Why]:
        go.touch()
        raise UnreachableError("No node answers.")

    monkeypatch.setattr(cluster, "why", why)
    assert run_command(cluster, f"until test -e {go}; do sleep 0.01; done", report=told.append) == 0
    assert told == ["it has not ended, and where it is cannot be told now: No node answers."]


def test_an_interrupt_cancels_and_a_second_one_stops_waiting(
    cluster: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    monkeypatch.setattr(StandInJob, "cancel", lambda job: job._cancelled.set())  # what runs does not end
    main = threading.get_ident()

    def interrupt() -> None:
        while not started.exists():
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)
        while not cluster.jobs[0].was_cancelled:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)  # the job goes on, so only this ends the wait

    helper = threading.Thread(target=interrupt)
    helper.start()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_command(cluster, f"touch {started}; sleep 20")
    helper.join()
    assert cluster.jobs[0].was_cancelled
    assert time.monotonic() - before < 9
