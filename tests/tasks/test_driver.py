"""A driver without a cluster: which tasks it runs, what it tells its daemon, and where large results go."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.core.records import Runs, indices_of
from kos_cluster.errors import ProtocolError, TaskLostError
from kos_cluster.net import driven
from kos_cluster.tasks import bundle
from kos_cluster.tasks import driver as module
from kos_cluster.tasks.driver import Driver
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.job import JobSpec
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.script import CommandResult


class Link:
    """What the daemon hears."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, bytes]] = []

    def send(self, message: Any, payload: bytes = b"") -> None:
        self.said.append((message, payload))

    @property
    def exit_codes(self) -> dict[int, int]:
        return {task: code for message, _ in self.said for task, code in message.exit_codes.items()}

    def outcomes(self) -> dict[int, Outcome]:
        """Of all results, wherever they were put."""
        found: dict[int, bytes] = {}
        for message, payload in self.said:
            data = Path(message.file).read_bytes() if message.file else payload
            if message.file:
                assert hashlib.sha256(data).hexdigest() == message.sha256
            found |= bundle.unpack_outcomes(data)
        return {task: bundle.unpack_outcome(data) for task, data in found.items()}


class OneJob:
    """Stands for the cluster and its one job: each task ends at once, as `ends` says."""

    def __init__(self, ends: Any) -> None:
        self.ends = ends
        self.ran: list[int] = []
        self.id = ""
        self.owner = None

    def launch(self, spec: JobSpec, id: str) -> OneJob:
        self.id = id
        return self

    def resume(self, payloads: Sequence[bytes], settled: Runs) -> None:
        done = set(indices_of(settled))
        self.ran = [index for index in range(len(payloads)) if index not in done]

    def future(self, index: int) -> Future:
        future = Future(self, index)
        future.settle(self.ends(index))
        return future

    def cancel_task(self, index: int) -> None: ...

    def story(self, index: int) -> None: ...

    def close(self) -> None: ...


def drive(
    folder: Path, ends: Any, *, count: int = 4, settled: Runs | None = None, retries: int = 3, **order: Any
) -> tuple[Link, OneJob]:
    data = bundle.pack(JobSpec(b"fn", options=Options(retries=retries)), [b"x"] * count)
    path = folder / "bundle"
    path.write_bytes(data)
    plain: dict[str, Any] = {
        "job": "j", "cluster": "lab", "epoch": 1, "programs": False, "bundle": str(path), "settled": settled or [],
        "sha256": hashlib.sha256(data).hexdigest(), "inline_bytes": 0, "spool": str(folder / "spool"),
    }  # fmt: skip
    link, cluster = Link(), OneJob(ends)
    Driver(link, driven.Drive(**plain | order), cluster).run()  # type: ignore[arg-type]
    return link, cluster


def value(content: Any, failed: bool = False) -> Outcome:
    return Outcome(pickle.dumps(content), failed)


def test_only_tasks_without_a_result_run_and_each_is_told(tmp_path: Path):
    link, job = drive(tmp_path, lambda i: value(i * i), settled=[(1, 2)], epoch=2)
    assert job.ran == [0, 3]
    assert {task: outcome.value() for task, outcome in link.outcomes().items()} == {0: 0, 3: 9}
    assert link.exit_codes == {0: 0, 3: 0}


def test_failed_tasks_lost_ones_and_cancelled_ones_have_their_ends(tmp_path: Path):
    ends = [value("no failure that is read here", failed=True), TaskLostError("It was lost."), None, value(1)]
    link, _ = drive(tmp_path, lambda i: ends[i])
    assert link.exit_codes == {0: 1, 1: TaskLostError.exit_code, 2: 1, 3: 0}
    outcomes = link.outcomes()
    with pytest.raises(TaskLostError, match="It was lost"):
        outcomes[1].value()
    assert type(outcomes[2].error()).__name__ == "CancelledError"


@pytest.mark.parametrize("code", [0, 3])
def test_a_programs_exit_code_is_the_jobs(tmp_path: Path, code: int):
    link, _ = drive(tmp_path, lambda i: value(CommandResult(code)), count=1, programs=True)
    assert link.exit_codes == {0: code}


def test_what_a_map_returns_is_not_unpickled(tmp_path: Path):
    link, _ = drive(tmp_path, lambda i: Outcome(b"not a pickle"), count=1)
    assert link.exit_codes == {0: 0}


def test_results_go_to_files_when_the_state_has_no_room_for_them(tmp_path: Path):
    link, _ = drive(tmp_path, lambda i: value(bytes(1000)), count=2, inline_bytes=module.INLINE_LIMIT_BYTES - 500)
    assert all(message.file for message, _ in link.said)
    assert [outcome.value() for outcome in link.outcomes().values()] == [bytes(1000)] * 2
    assert (Path(link.said[0][0].file).stat().st_mode & 0o777) == 0o600


def test_the_state_is_never_given_more_than_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "COLLECTED_LIMIT_BYTES", 1)  # each result by itself
    link, _ = drive(tmp_path, lambda i: value(bytes(30_000)), count=4)
    kept = [bundle.unpack_outcomes(payload) for message, payload in link.said if not message.file]
    assert 0 < sum(len(data) for outcomes in kept for data in outcomes.values()) <= module.INLINE_LIMIT_BYTES
    assert sorted(link.outcomes()) == [0, 1, 2, 3]


def test_without_retries_what_a_lost_driver_may_have_started_is_not_run_again(tmp_path: Path):
    link, job = drive(tmp_path, lambda i: value(i), settled=[(0, 1)], retries=0, epoch=2)
    assert job.ran == []
    assert link.exit_codes == dict.fromkeys([1, 2, 3], TaskLostError.exit_code)
    with pytest.raises(TaskLostError, match="may have run when the node that drove its job was lost"):
        link.outcomes()[1].value()


def test_without_retries_the_first_driver_runs_everything(tmp_path: Path):
    _, job = drive(tmp_path, lambda i: value(i), retries=0)
    assert job.ran == [0, 1, 2, 3]


def test_damaged_work_is_not_run(tmp_path: Path):
    with pytest.raises(ProtocolError, match="damaged"):
        drive(tmp_path, lambda i: value(i), sha256="0" * 64)
