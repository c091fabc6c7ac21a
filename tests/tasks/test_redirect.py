"""A script's process pool on a cluster of two workers that share nothing with it but the archive of its folder."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kos_cluster.tasks import workspace
from kos_cluster.tasks.scriptpool import ClusterPool
from kos_cluster.tasks.workspace import pack, snapshot, unpack

STAND_IN = Path(__file__).with_name("stand_in.py")


class Ran:
    def __init__(self, code: int, out: str, err: str, folder: Path) -> None:
        self.code, self.out, self.err, self.folder = code, out, err, folder

    def file(self, path: str) -> str:
        return (self.folder / path).read_text()


def run(tmp_path: Path, source: str, *, files: dict[str, str] | None = None, env: dict[str, str] | None = None) -> Ran:
    """Run a script in an unpacked copy of a folder, with the stand-in for a cluster."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    for path, text in {"script.py": textwrap.dedent(source), **(files or {})}.items():
        (home / path).write_text(text)
    copy = tmp_path / "copy"
    unpack(pack(snapshot(home)), copy)
    (tmp_path / "nodes").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", STAND_IN, tmp_path / "nodes", "script.py"],
        cwd=copy,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )
    return Ran(done.returncode, done.stdout, done.stderr, copy)


def test_a_script_uses_the_cluster_without_a_change(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        from concurrent.futures import ProcessPoolExecutor, Executor, as_completed
        import concurrent.futures.process as process
        import os
        from helper import triple

        OFFSET = 100

        class Point:
            def __init__(self, x):
                self.x = x

        def work(x, plus=0):
            return triple(x) + OFFSET + plus

        def move(point):
            return Point(point.x + 1)

        def pid(_):
            return os.getpid()

        def where(_):
            return os.path.basename(os.path.dirname(os.getcwd()))

        if __name__ == "__main__":
            with ProcessPoolExecutor(max_workers=4) as pool:
                print(isinstance(pool, Executor), isinstance(pool, process.ProcessPoolExecutor))
                print(list(pool.map(work, range(5))), list(pool.map(work, range(5), range(5), chunksize=2)))
                print(pool.submit(work, 1, plus=7).result())
                moved = pool.submit(move, Point(1)).result()
                print(type(moved) is Point, moved.x)
                print(sorted(f.result() for f in as_completed([pool.submit(work, i) for i in range(3)])))
                print(os.getpid() in set(pool.map(pid, range(4))))
            with ProcessPoolExecutor() as pool:
                print(sorted(pool.map(str, range(3))))
        """,
        files={"helper.py": "def triple(x):\n    return 3 * x\n"},
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "True True",
        "[100, 103, 106, 109, 112] [100, 104, 108, 112, 116]",
        "110",
        "True 2",
        "[100, 103, 106]",
        "False",
        "['0', '1', '2']",
    ]


def test_globals_and_initializers_behave_as_with_multiprocessing(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import concurrent.futures, os
        loads = 0
        table = None
        loads += 1

        def prepare(size):
            global table
            table = list(range(size))

        def look(i):
            global loads
            assert __name__ == "__mp_main__", __name__
            return table[i], loads, os.environ["GIVEN"], os.environ["SET"], os.path.basename(__file__)

        if __name__ == "__main__":
            os.environ["SET"] = "by the script"
            with concurrent.futures.ProcessPoolExecutor(initializer=prepare, initargs=(10,)) as pool:
                print(set(pool.map(look, [3] * 8)))
        """,
        env={"GIVEN": "by the user", "KOS_GIVEN": "GIVEN"},
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "{(3, 1, 'by the user', 'by the script', 'script.py')}\n"


def test_files_come_back_before_their_task_is_done(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import os
        from concurrent.futures import ProcessPoolExecutor

        def write(i):
            with open(f"out/{i}.txt", "w") as file:
                file.write(open("params.txt").read() + str(i))
            if i == 2:
                raise ValueError("two")

        if __name__ == "__main__":
            os.mkdir("out")
            open("params.txt", "w").write("p")  # written before the pool starts, so its tasks see it
            with ProcessPoolExecutor() as pool:
                for i, future in enumerate([pool.submit(write, i) for i in range(4)]):
                    print(i, type(future.exception()).__name__, open(f"out/{i}.txt").read())
        """,
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == ["0 NoneType p0", "1 NoneType p1", "2 ValueError p2", "3 NoneType p3"]


def test_tasks_that_write_one_file_lose_nothing(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import os, time
        from concurrent.futures import ProcessPoolExecutor

        def note(i):
            with open("log.txt", "a") as file:
                file.write(f"{i}\\n")
            time.sleep(0.01)

        if __name__ == "__main__":
            with ProcessPoolExecutor() as pool:
                list(pool.map(note, range(20)))
        """,
    )
    logs = sorted(path.name for path in ran.folder.glob("log*"))
    assert ran.code == 0
    assert 1 <= len(logs) <= 2
    lines = [int(line) for name in logs for line in ran.file(name).split()]
    assert sorted(lines) == list(range(20))
    assert (len(logs) == 2) == ("log.kos-conflict-" in ran.err)


def test_errors_are_those_of_the_original(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import os, sys, time
        from concurrent.futures import CancelledError, ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        class Own(Exception):
            def __init__(self, a, b):
                super().__init__(a, b)

        def fail():
            raise Own(1, 2)

        def die():
            os._exit(9)

        def bad_start():
            raise RuntimeError("no start")

        def told(call):
            try:
                return call()
            except BaseException as error:
                return f"{type(error).__name__}: {str(error)[:60]}"

        if __name__ == "__main__":
            pool = ProcessPoolExecutor()
            try:
                pool.submit(fail).result()
            except Own as error:
                print(error.args, "in fail" in str(error.__cause__), "scriptitems.py" in str(error.__cause__))
            print(told(lambda: pool.submit(lambda: 1).result()))
            print(told(lambda: pool.map(fail, chunksize=0)))
            pool.shutdown()
            print(told(lambda: pool.submit(fail)))
            for wrong in ({"max_workers": 0}, {"initializer": 3}, {"max_tasks_per_child": 0}):
                print(told(lambda: ProcessPoolExecutor(**wrong)))
            pool = ProcessPoolExecutor()
            print(told(pool.submit(die).result)[:30])
            print(told(lambda: pool.submit(fail))[:30])
            pool.shutdown()
            with ProcessPoolExecutor(initializer=bad_start) as pool:
                future = pool.submit(time.sleep, 0)
                print(told(future.result)[:17], "no start" in str(future.exception()))
            with ProcessPoolExecutor(max_workers=1) as pool:
                futures = [pool.submit(time.sleep, 0.3) for _ in range(5)]
                while not futures[0].running():
                    time.sleep(0.01)
                print(futures[0].cancel(), futures[4].cancel(), futures[4].cancelled())
                pool.shutdown(cancel_futures=True)
                print([f.cancelled() for f in futures])
        """,
    )
    assert ran.err == ""
    own, lambdas, *others = ran.out.splitlines()
    assert own == "(1, 2) True False"
    assert "Can't pickle" in lambdas
    assert others == [
        "ValueError: chunksize must be >= 1.",
        "RuntimeError: cannot schedule new futures after shutdown",
        "ValueError: max_workers must be greater than 0",
        "TypeError: initializer must be a callable",
        "ValueError: max_tasks_per_child must be >= 1",
        "BrokenProcessPool: A process i",
        "BrokenProcessPool: A process i",
        "BrokenProcessPool True",
        "False True True",
        "[False, True, True, True, True]",
    ]


def test_a_script_that_ends_waits_for_its_tasks(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import atexit, sys, time
        from concurrent.futures import ProcessPoolExecutor

        def slow(name):
            time.sleep(0.2)
            open(name, "w").write("done")

        if __name__ == "__main__":
            atexit.register(lambda: print("exit", open("a").read()))
            pool = ProcessPoolExecutor()
            pool.submit(slow, "a")
            pool.shutdown(wait=False)
            other = ProcessPoolExecutor()
            other.submit(slow, "b")
            sys.exit(4)
        """,
    )
    assert (ran.code, ran.out, ran.err) == (4, "exit done\n", "")
    assert ran.file("b") == "done"


def test_a_folder_that_grew_too_large_is_told_at_submit(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        f"""
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with open("huge.bin", "wb") as file:
                file.truncate({workspace.WORKSPACE_LIMIT_BYTES + 1})
            ProcessPoolExecutor().submit(print)
        """,
    )
    assert ran.code == 1
    assert "LimitError" in ran.err.splitlines()[-1]
    assert "huge.bin" in ran.err.splitlines()[-1]


def test_a_pool_outside_a_script_fails_with_a_sentence() -> None:
    pool = ClusterPool()
    with pytest.raises(workspace.UsageError, match="kos run --distribute"):
        pool.submit(print)
    pool.shutdown()


def test_without_a_cluster_a_pool_fails_with_a_sentence(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    (home / "script.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor().submit(print)\n"
    )
    unpack(pack(snapshot(home)), copy)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kos_cluster.tasks.script", "script.py"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "KOS_HOME": os.fspath(tmp_path / "nowhere")},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "kos_cluster.errors.NotInClusterError: This machine is in no cluster."
    )
