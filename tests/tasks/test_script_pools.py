"""A script's `multiprocessing.Pool`s and joblib calls, on a cluster of two workers; see `test_redirect`."""

from __future__ import annotations

import os
from pathlib import Path

from tests.tasks.test_redirect import run

FORMS = """
import multiprocessing, multiprocessing.dummy, multiprocessing.pool, os
from multiprocessing import Pool

here = os.getpid()
offset = 1  # the workers learn what it is when a pool is made
table = None

class Point:
    def __init__(self, x):
        self.x = x

class Own(multiprocessing.pool.Pool):
    def names(self):  # of the original, as it is one
        return [self.apply(where)]

def prepare(size):
    global table
    table = list(range(size))

def look(i):
    return table[i] + offset, __name__

def plus(x, y=0):
    return x + y + offset

def move(point):
    return Point(point.x + offset)

def where(_=None):
    return os.path.basename(os.getcwd()) == "copy"

def write(i):
    with open(f"out{i}.txt", "w") as file:
        file.write(str(i))

if __name__ == "__main__":
    offset = 10
    print(multiprocessing.cpu_count(), multiprocessing.get_context("spawn").cpu_count())
    with Pool(2, prepare, (5,)) as pool:
        offset = 20
        print(pool.map(look, [1, 2]), pool.apply(plus, (1,), {"y": 2}), pool.starmap(plus, [(1, 2), (3, 4)], 1))
        print(list(pool.imap(plus, range(3))), sorted(pool.imap_unordered(plus, range(4), 2)))
        print(pool.apply(move, (Point(1),)).x, type(pool.apply(move, (Point(1),))) is Point)
        result = pool.map_async(plus, range(3), callback=print)
        print(result.get(30), isinstance(pool, multiprocessing.pool.Pool), pool.map(where, range(2)))
    with multiprocessing.get_context("spawn").Pool() as pool:
        print(pool.apply(plus, (0,)), pool._processes)
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        pool.map(write, range(3), 1)
        pool.close()
        pool.join()
    print(sorted(name for name in os.listdir() if name.startswith("out")))
    with multiprocessing.pool.ThreadPool(1) as threads, multiprocessing.dummy.Pool(1) as more:
        print(threads.apply(os.getpid) == here == more.apply(os.getpid), type(threads).__name__)
    with Own(1) as pool:
        print(pool.names(), isinstance(pool, multiprocessing.pool.Pool))
"""


def test_every_form_of_pool_uses_the_cluster(tmp_path: Path) -> None:
    ran = run(tmp_path, FORMS)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "2 2",
        "[(11, '__mp_main__'), (12, '__mp_main__')] 13 [13, 17]",
        "[10, 11, 12] [10, 11, 12, 13]",
        "11 True",
        "[10, 11, 12]",
        "[10, 11, 12] True [False, False]",
        "1 2",
        "['out0.txt', 'out1.txt', 'out2.txt']",
        "True ThreadPool",
        "[True] True",
    ]


def test_pools_whose_processes_share_memory_stay_here_and_say_so_once(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import multiprocessing, os
        from concurrent.futures import ProcessPoolExecutor

        shared = None

        def take(given):
            global shared
            shared = given

        def where(_, queue=None):
            return os.path.basename(os.getcwd()), shared is None

        def check(*kinds, pool=multiprocessing.Pool, **more):
            global shared
            for shared in kinds or [1]:
                for _ in range(2):
                    with pool(2, **more) as made:
                        assert set(made.map(where, range(4))) == {("copy", False)}, shared
            shared = 1

        if __name__ == "__main__":
            check(initializer=take, initargs=(multiprocessing.Lock(),))
            check(initializer=lambda: None)
            check(multiprocessing.Queue(), [multiprocessing.Value("i")], multiprocessing.RawArray("i", 2))
            check(multiprocessing.Pipe()[0], pool=ProcessPoolExecutor)
            import helper
            check()
            shared = multiprocessing.Lock()  # each process of a spawned pool makes its own as it loads the script
            with multiprocessing.get_context("spawn").Pool(1) as pool, multiprocessing.Manager() as manager:
                print(pool.apply(where, (1,))[0] == "copy")
                print(pool.starmap(where, [(1, manager.Queue())])[0][0], pool.apply(where, (1,))[0])
        """,
        files={"helper.py": "import multiprocessing\nlock = multiprocessing.RLock()\n"},
        env={"KOS_NODE": "n7"},
    )
    assert (ran.code, ran.out) == (0, "False\ncopy copy\n"), ran.err
    told = [line.removeprefix("kos: warning: a process pool stays on node n7: ") for line in ran.err.splitlines()]
    assert told[0] == "its processes share the Lock in its initargs."
    assert told[1].startswith("only processes that are forked can have its initializer (")
    assert told[2:] == [
        "its processes share the Queue in 'shared'.",
        "its processes share the Synchronized in 'shared'.",
        "its processes share the c_int_Array_2 in 'shared'.",
        "its processes share the Connection in 'shared'.",
        "its processes share the RLock in 'helper.lock'.",
        "a call has a AutoProxy[Queue], which its processes share.",
    ]


def test_errors_of_a_pool_are_those_of_the_original(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import multiprocessing, os, time

        def fail(x):
            raise KeyError(x)

        def die(_):
            os._exit(9)

        def stay(begun):
            open(begun, "w").close()
            time.sleep(60)

        def told(call):
            try:
                return call()
            except BaseException as error:
                return f"{type(error).__name__}: {str(error)[:40]}"

        if __name__ == "__main__":
            for wrong in ({"processes": 0}, {"initializer": 3}, {"maxtasksperchild": 0}):
                print(told(lambda: multiprocessing.Pool(**wrong)))
            pool = multiprocessing.Pool()
            print(told(lambda: pool.map(fail, [1, 2])))
            print("pickle" in told(lambda: pool.apply(lambda: 1)))
            print(told(lambda: pool.apply(die, (1,)))[:13], pool.apply(abs, (-1,)))
            pool.close()
            print(told(lambda: pool.apply(abs, (1,))))
            pool.join()
            left = multiprocessing.Pool()
            left.apply_async(stay, (BEGUN,))  # the end of the script does not wait for it
            while not os.path.exists(BEGUN):
                time.sleep(0.005)
        """.replace("BEGUN", repr(os.fspath(tmp_path / "begun"))),
    )
    assert ran.out.splitlines() == [
        "ValueError: Number of processes must be at least 1",
        "TypeError: initializer must be a callable",
        "ValueError: maxtasksperchild must be a positive int ",
        "KeyError: 1",
        "True",
        "TaskLostError 1",
        "ValueError: Pool not running",
    ]


def test_joblib_uses_the_cluster_without_a_guard_and_its_threads_stay(tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        """
        import multiprocessing, os
        from joblib import Parallel, delayed, parallel_config, effective_n_jobs

        factor = 3

        class Point:
            def __init__(self, x):
                self.x = x

        def work(i):
            with open(f"part{i}.txt", "w") as file:
                file.write(open("given.txt").read())
            return Point(factor * i), os.path.basename(os.getcwd()) == "copy"

        def threads(_):
            return os.environ["OMP_NUM_THREADS"]

        def locked(lock):
            with lock:
                return os.path.basename(os.getcwd())

        def call(*given, **how):
            found = Parallel(*given, **how)(delayed(work)(i) for i in range(4))
            print([point.x for point, _ in found], {type(point) is Point for point, _ in found}, {w for _, w in found})

        open("given.txt", "w").write("given")
        for backend in (None, "loky", "multiprocessing"):
            call(n_jobs=2, backend=backend)
        for how in ({"n_jobs": 2, "prefer": "threads"}, {"n_jobs": 2, "require": "sharedmem"}, {}):
            call(**how)
        print(effective_n_jobs(-1), effective_n_jobs(7))
        print(sorted(n for n in os.listdir() if n.startswith("part")), open("part1.txt").read())
        with parallel_config(backend="loky", n_jobs=-1, inner_max_num_threads=3):
            print(set(Parallel()(delayed(threads)(i) for i in range(2))))
        try:
            Parallel(n_jobs=-1)(delayed(int)(x) for x in ("1", "x"))
        except ValueError as error:
            print(error)
        with multiprocessing.Manager() as manager:
            lock = manager.Lock()
            print(Parallel(n_jobs=2)(delayed(locked)(lock) for _ in range(2)))
        """,
    )
    assert (ran.code, ran.err.count("kos: warning:")) == (0, 1), ran.err
    assert ran.out.splitlines() == [
        *3 * ["[0, 3, 6, 9] {True} {False}"],
        *3 * ["[0, 3, 6, 9] {True} {True}"],
        "2 7",
        "['part0.txt', 'part1.txt', 'part2.txt', 'part3.txt'] given",
        "{'3'}",
        "invalid literal for int() with base 10: 'x'",
        "['copy', 'copy']",
    ]


SHUT_WHILE_SUBMITTING = """
from concurrent.futures import ProcessPoolExecutor

class Shuts:
    def __reduce__(self):  # called as the call is pickled, as another thread may shut the pool down then
        pool.shutdown(wait=False)
        return int, (1,)

if __name__ == "__main__":
    pool = ProcessPoolExecutor(2)
    print(pool.submit(abs, -1).result())
    try:
        pool.submit(abs, Shuts())
    except RuntimeError as error:
        print(error)
"""


def test_a_call_that_a_shutdown_overtakes_is_refused_and_never_forgotten(tmp_path: Path) -> None:
    ran = run(tmp_path, SHUT_WHILE_SUBMITTING)
    assert (ran.code, ran.out) == (0, "1\ncannot schedule new futures after shutdown\n"), ran.err
