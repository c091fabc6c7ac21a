"""Scripts across a real cluster: what they see, what comes back, and how they are stopped."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def folder(local: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that commands are typed in, fresh for each test."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.setattr(local, "work", place)
    return place


def write(folder: Path, name: str, source: str) -> None:
    (folder / name).write_text(textwrap.dedent(source))


def test_a_script_and_its_tasks_bring_their_files_back(local: Any, folder: Path) -> None:
    write(folder, "helper.py", "def triple(x):\n    return 3 * x\n")
    write(
        folder,
        "script.py",
        """
        import argparse, os, sys, time
        from concurrent.futures import ProcessPoolExecutor
        from helper import triple

        parser = argparse.ArgumentParser()
        parser.add_argument("--count", type=int, required=True)
        table = None

        def prepare(offset):
            global table
            table = {i: triple(i) + offset for i in range(100)}

        def work(i):
            time.sleep(0.1)
            with open(f"part{i}.txt", "w") as file:
                file.write(open("params.txt").read() + os.environ["KOS_NODE"])
            return table[i]

        if __name__ == "__main__":
            given = parser.parse_args()
            open("params.txt", "w").write("from ")
            with ProcessPoolExecutor(initializer=prepare, initargs=(1000,)) as pool:
                print(list(pool.map(work, range(given.count))))
            print(sorted(name for name in os.listdir(".")), repr(sys.stdin.read()))
            sys.exit(3)
        """,
    )
    done = local.kos("run", "--distribute", "script.py", "--count", "8")
    assert done.returncode == 3, done.stderr
    first, second = done.stdout.splitlines()
    assert first == str([3 * i + 1000 for i in range(8)])
    assert second.endswith(" ''")
    nodes = {(folder / f"part{i}.txt").read_text() for i in range(8)}
    assert nodes == {"from node1", "from node2"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["helper.py", "script.py", "params.txt", *(f"part{i}.txt" for i in range(8))]
    )


POOLS = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from joblib import Parallel, delayed

lock = None
factor = None

def where(i):
    time.sleep(0.1)
    with open(f"part{i}.txt", "w") as file:
        file.write(str(factor))
    return os.environ["KOS_NODE"]

def take(given):
    global lock
    lock = given

if __name__ == "__main__":
    factor = multiprocessing.cpu_count()
    print(ProcessPoolExecutor.__module__)
    pools = multiprocessing.Pool(), multiprocessing.get_context("spawn").Pool(2)
    for pool in (*pools, multiprocessing.Pool(2, take, (multiprocessing.Lock(),))):
        with pool:
            print(len(set(pool.map(where, range(8), 1))))
    for how in ({}, {"prefer": "threads"}):
        print(len(set(Parallel(n_jobs=-1, **how)(delayed(where)(i) for i in range(8, 16)))))
"""


def test_pools_and_joblib_calls_use_the_whole_cluster(local: Any, folder: Path) -> None:
    write(folder, "script.py", POOLS)
    slots = sum(member["slots"] for member in local.json("nodes"))
    done = local.kos("run", "--distribute", "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["kos_cluster.tasks.scriptpool", "2", "2", "1", "2", "1"]
    assert "its processes share the Lock in its initargs." in done.stderr
    assert done.stderr.count("kos: warning:") == 1
    # Of the last to write: a spawned process does not have what was assigned, one that is forked, and a call that
    # travels by value, have.
    assert {(folder / f"part{i}.txt").read_text() for i in range(16)} == {str(slots)}


EVERY_FORM = """
import itertools, multiprocessing, multiprocessing.pool, os, sys, tempfile, time
from multiprocessing.pool import Pool
from joblib import Parallel, delayed

table = None
shared = None

def prepare(size):
    global table
    table = list(range(size))

def look(i, meeting, nodes):
    began = time.monotonic()
    open(os.path.join(meeting, os.environ["KOS_NODE"]), "w").close()
    while len(os.listdir(meeting)) < nodes and time.monotonic() < began + 30:
        time.sleep(0.01)
    time.sleep(0.02)  # two at once would be seen
    return os.environ["KOS_NODE"], table and table[i], began, time.monotonic()

def calls(nodes=2):  # eight, which wait until so many nodes run some of them
    meeting = tempfile.mkdtemp(dir=sys.argv[1])
    return [(i, meeting, nodes) for i in range(8)]

def tell(found):
    spells = sorted(spell[2:] for spell in found)
    alone = all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spells))
    print(len({node for node, *_ in found}), alone, [value for _, value, *_ in found])

def take(given):
    global shared
    shared = given

def count(i):
    with shared.get_lock():
        shared.value += 1
    return os.environ["KOS_NODE"]

def put(i):
    shared.put(i)
    return os.environ["KOS_NODE"]

def main():  # what pools share must be no global of the script, which would be a reason of its own
    forkserver = multiprocessing.get_context("forkserver")
    for pool in (multiprocessing.pool.Pool(2, prepare, (8,)), Pool(2), forkserver.Pool()):
        with pool:
            tell(pool.starmap(look, calls(), 1))
    with multiprocessing.Pool(1) as pool:
        tell(pool.starmap(look, calls(nodes=1), 1))
    tell(Parallel(n_jobs=-1, backend="multiprocessing")(delayed(look)(*call) for call in calls()))
    value, queue = multiprocessing.Value("i"), multiprocessing.Queue()
    for fn, thing in 2 * [(count, value)] + 2 * [(put, queue)]:
        with multiprocessing.Pool(2, take, (thing,)) as pool:
            print(len(set(pool.map(fn, range(4), 1))))
    print(value.value, sorted(queue.get() for _ in range(8)))

if __name__ == "__main__":
    main()
"""


def test_every_form_of_pool_spreads_keeps_its_cap_or_shares_memory_and_says_so_once(
    local: Any, folder: Path, tmp_path: Path
) -> None:
    write(folder, "script.py", EVERY_FORM)
    done = local.kos("run", "--distribute", "script.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    spread, nothing = "2 False", [None] * 8
    *pools, capped, joblib, value, value_again, queue, queue_again, kept = done.stdout.splitlines()
    assert pools == [f"{spread} {list(range(8))}", f"{spread} {nothing}", f"{spread} {nothing}"]
    assert capped.split(maxsplit=1)[1] == f"True {nothing}"
    assert joblib == f"{spread} {nothing}"
    assert [value, value_again, queue, queue_again] == ["1"] * 4
    assert kept == "8 [0, 0, 1, 1, 2, 2, 3, 3]"
    warnings = [line for line in done.stderr.splitlines() if "kos: warning:" in line]
    assert [line.partition(": its ")[2] for line in warnings] == [
        "processes share the Synchronized in its initargs.",
        "processes share the Queue in its initargs.",
    ]


SEARCH = """
import os, sys, time
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

meeting = sys.argv[1]

def accuracy(model, x, y):
    open(os.path.join(meeting, os.environ["KOS_NODE"]), "w").close()
    deadline = time.monotonic() + 30
    while len(os.listdir(meeting)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return model.score(x, y)

if __name__ == "__main__":
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=2, scoring=accuracy, n_jobs=-1)
    search.fit(*load_iris(return_X_y=True))
    print(search.best_params_, search.best_score_.round(2))
"""


def test_an_unmodified_grid_search_uses_the_whole_cluster(local: Any, folder: Path, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    write(folder, "search.py", SEARCH)
    done = local.kos("run", "--distribute", "search.py", str(meeting))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'C': 10} 0.97\n"
    assert {path.name for path in meeting.iterdir()} == {"node1", "node2"}


def test_without_redirect_pools_stay_where_the_script_is(local: Any, folder: Path) -> None:
    write(folder, "script.py", POOLS)
    done = local.kos("run", "--distribute", "--no-redirect", "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["concurrent.futures.process", *5 * "1"]
    assert "kos: warning:" not in done.stderr


def test_a_traceback_looks_as_under_plain_python(local: Any, folder: Path) -> None:
    write(folder, "script.py", "def inner():\n    1 / 0\n\ninner()\n")
    done = local.kos("run", "--distribute", "script.py")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("kos:")]
    assert done.returncode == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert 'script.py", line 4, in <module>' in lines[1]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "kos_cluster" not in done.stderr


def test_a_file_changed_on_both_sides_comes_back_beside(
    local: Any, folder: Path, until: Callable[..., Any], tmp_path: Path
) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()
    write(folder, "log.txt", "old")
    write(
        folder,
        "script.py",
        f"""
        import os, time
        open({str(flags / "started")!r}, "w").close()
        while not os.path.exists({str(flags / "go")!r}):
            time.sleep(0.02)
        open("log.txt", "w").write("theirs")
        os.unlink("keep.txt")
        """,
    )
    write(folder, "keep.txt", "kept")
    running = local.start("run", "--distribute", "script.py")
    until((flags / "started").exists, "the script runs")
    write(folder, "log.txt", "mine")
    (flags / "go").touch()
    _, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    (copy,) = folder.glob("log.kos-conflict-*.txt")
    assert ((folder / "log.txt").read_text(), copy.read_text()) == ("mine", "theirs")
    assert copy.name in err
    assert (folder / "keep.txt").read_text() == "kept"  # deletions never come back


def test_an_interrupt_stops_the_script_and_its_tasks(
    local: Any, folder: Path, until: Callable[..., Any], tmp_path: Path
) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()
    write(
        folder,
        "script.py",
        f"""
        import os, time
        from concurrent.futures import ProcessPoolExecutor

        def flag(name):
            open(os.path.join({str(flags)!r}, name), "w").close()

        def stay(who):
            flag(f"{{who}} runs")
            try:
                time.sleep(60)
            finally:
                flag(f"{{who}} ended")

        if __name__ == "__main__":
            with ProcessPoolExecutor() as pool:
                pool.submit(stay, "task")
                stay("script")
        """,
    )
    running = local.start("run", "--distribute", "script.py")
    until(lambda: (flags / "task runs").exists() and (flags / "script runs").exists(), "the script and its task run")
    running.send_signal(signal.SIGINT)
    until(lambda: (flags / "task ended").exists() and (flags / "script ended").exists(), "both were stopped", 10.0)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert local.ok("run", "echo", "next") == "next\n"


def test_what_cannot_run_is_said_before_anything_is_sent(local: Any, folder: Path) -> None:
    missing = local.kos("run", "--distribute", "nowhere.py")
    assert missing.returncode == 2
    assert "nowhere.py" in missing.stderr
    write(folder.parent, "outside.py", "")
    outside = local.kos("run", "--distribute", "../outside.py")
    assert outside.returncode == 2
    assert "only that folder is sent" in outside.stderr
    write(folder, "script.py", "")
    with (folder / "huge.bin").open("wb") as file:
        file.truncate(101 << 20)
    large = local.kos("run", "--distribute", "script.py")
    assert large.returncode == 10
    assert "huge.bin (101.0 MiB)" in large.stderr
    write(folder, ".kosignore", "*.bin\n")
    assert local.kos("run", "--distribute", "script.py").returncode == 0


def test_commands_pass_their_exit_code_through(local: Any, folder: Path) -> None:
    done = local.kos("cluster", "exec", "node2", "echo out; echo err >&2; echo $KOS_NODE; exit 5")
    assert (done.returncode, done.stdout) == (5, "out\nnode2\n")
    assert "err\n" in done.stderr
    assert local.kos("run", "no-such-command").returncode == 127
    assert local.kos("run", "--on", "node1", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_a_script_that_starts_a_pool_as_it_is_loaded_is_refused(local: Any, folder: Path) -> None:
    write(
        folder,
        "bare.py",
        """
        from concurrent.futures import ProcessPoolExecutor

        def work(i):
            return i

        with ProcessPoolExecutor() as pool:
            print(list(pool.map(work, range(4))))
        """,
    )
    done = local.kos("run", "--distribute", "bare.py")
    assert done.returncode == 1
    assert "Put what starts the work under: if __name__ == '__main__'" in done.stderr
    assert done.stdout == ""


def test_a_script_that_parses_its_arguments_at_the_top_works_in_workers_too(local: Any, folder: Path) -> None:
    write(
        folder,
        "parse.py",
        """
        import sys
        from concurrent.futures import ProcessPoolExecutor

        factor = int(sys.argv[1])

        def work(i):
            return factor * i

        if __name__ == "__main__":
            with ProcessPoolExecutor() as pool:
                print(list(pool.map(work, range(4))))
        """,
    )
    assert local.ok("run", "--distribute", "parse.py", "5") == "[0, 5, 10, 15]\n"


def test_a_link_out_of_the_folder_is_told_and_changes_no_exit_code(local: Any, folder: Path) -> None:
    write(folder, "link.py", "import os\nos.symlink('/etc/hostname', 'outside')\nopen('inside', 'w').write('x')\n")
    done = local.kos("run", "--distribute", "link.py")
    assert done.returncode == 0, done.stderr
    assert "outside stays there" in done.stderr
    assert (folder / "inside").read_text() == "x"


def test_commands_work_in_the_home_folder(local: Any, folder: Path) -> None:
    assert local.ok("run", "pwd").strip() == str(Path.home())


def test_a_deleted_folder_is_said(local: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.setattr(local, "work", gone)
    kos = Path(sys.executable).with_name("kos")
    script = f"rmdir {gone} && exec {kos} run --distribute a.py"
    with local.popen(["sh", "-c", script]) as shell:
        _, err = shell.communicate(timeout=30)
    assert shell.returncode == 2
    assert "current folder does not exist" in err


def test_a_script_whose_worker_dies_is_not_run_again_unless_asked(local: Any, folder: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    write(folder, "die.py", f"import os\nopen({str(marks)!r}, 'a').write('x')\nos.kill(os.getppid(), 9)\n")
    once = local.kos("run", "--distribute", "die.py")
    assert (once.returncode, marks.read_text()) == (13, "x")
    assert "SIGKILL, cause unknown" in once.stderr
    again = local.kos("run", "--distribute", "--retries", "1", "die.py")
    assert (again.returncode, marks.read_text()) == (13, "xxx")


def test_a_script_runs_as_the_ranks_of_a_gang(local: Any, folder: Path) -> None:
    (folder / "ranks.py").write_text(
        "import os, sys, pathlib, kos_cluster as kos\n"
        "comm = kos.comm()\n"
        "os.write(1, f'sum {comm.allreduce(comm.rank + 1)}\\n'.encode())  # in one piece\n"
        "pathlib.Path(f'rank{comm.rank}.txt').write_text('here')\n"
        "if comm.rank == 1 and sys.argv[1:]:\n"
        "    sys.exit(int(sys.argv[1]))\n"
        "comm.barrier()\n"
    )
    done = local.kos("run", "--gang", "2", "--spread", "python", "ranks.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sum", "3", "sum", "3"]
    assert (folder / "rank0.txt").read_text() == "here" and not (folder / "rank1.txt").exists()
    failed = local.kos("run", "--gang", "2", "ranks.py", "7")
    assert failed.returncode == 7, failed.stderr
    assert "Rank 1 on node" in failed.stderr
    told = local.ok("run", "--gang", "2", "sh", "-c", "echo $RANK of $WORLD_SIZE at $MASTER_PORT")
    assert sorted(line.partition(" at ")[0] for line in told.splitlines()) == ["0 of 2", "1 of 2"]
    refused = local.kos("run", "--gang", "9", "hostname")
    assert refused.returncode == 12 and "9 ranks of 1 slot each do not fit" in refused.stderr


def test_a_script_of_a_gang_goes_on_from_its_checkpoint(local: Any, folder: Path) -> None:
    write(
        folder,
        "ranks.py",
        """
        import os, time
        import kos_cluster as kos

        comm, state = kos.comm(), kos.restored()
        if state is None:
            kos.checkpoint({"of": comm.rank})
            comm.barrier()
            if comm.rank == 1:
                os.kill(os.getppid(), 9)
            time.sleep(60)
        os.write(1, f"{comm.rank} had {state['of']}\\n".encode())
        """,
    )
    done = local.kos("run", "--gang", "2", "--spread", "--restarts", "1", "python", "ranks.py")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 had 0", "1 had 1"]
