"""A script on a node behaves as under plain python; a command's end is told as a shell tells it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kos_cluster.tasks.script import GIVEN_VARIABLES, CommandResult, run_command
from kos_cluster.tasks.workspace import pack, read_archive, snapshot, unpack

PROBE = """\
import atexit, multiprocessing, sys, threading
import neighbour

class Thing:
    pass

def double(x):
    return x * 2

if __name__ == "__main__":
    import pickle
    print(sys.argv, __file__, __name__, __package__, __spec__, sys.path[0])
    print(sorted(globals()))
    print(sys.modules["__main__"].__dict__ is globals(), repr(sys.stdin.read()))
    print(type(__builtins__).__name__, __loader__.name, __doc__, neighbour.WHO)
    atexit.register(print, "at exit")
    thread = threading.Thread(target=print, args=["in a thread"])
    thread.start()
    thread.join()
    print(pickle.loads(pickle.dumps(double))(4), type(pickle.loads(pickle.dumps(Thing()))) is Thing)
    process = multiprocessing.get_context("spawn").Process(target=print, args=("in a process",))
    process.start()
    process.join()
    print("end")
"""

ENDINGS = {
    "exit 3": "import sys; print('x'); sys.exit(3)",
    "exit with text": "raise SystemExit('text')",
    "exit none": "import sys; sys.exit()",
    "error": "def inner():\n    1 / 0\n\ndef outer():\n    inner()\n\nouter()",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e",
    "in context": "try:\n    {}['a']\nexcept KeyError:\n    int('x')",
    "group": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "syntax": "print('never')\nx = = 1",
    "own hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__, a[2].tb_lineno)\n1 / 0",
    "error and exit function": "import atexit\natexit.register(print, 'bye')\nraise RuntimeError('x')",
    "interrupt": "raise KeyboardInterrupt",
    "hard exit": "import os; os._exit(7)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "thread error": "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()",
    "main guard": "if __name__ == '__main__':\n    print('main')",
    "future annotations off": "def f(x: undefined_name): pass",
    "empty": "",
}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=60
    )


def both_ways(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    plain = run(folder, sys.executable, *words)
    ours = run(folder, sys.executable, "-P", "-m", "kos_cluster.tasks.script", *words)
    return plain, ours


def test_a_script_sees_what_plain_python_shows_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "probe.py").write_text(PROBE)
    (tmp_path / "sub" / "neighbour.py").write_text("WHO = 'neighbour'")
    plain, ours = both_ways(tmp_path, "sub/probe.py", "a", "--b", "c d")
    assert "in a thread" in plain.stdout
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, plain.returncode)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_script_ends_as_under_plain_python(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ENDINGS[name])
    plain, ours = both_ways(tmp_path, "script.py")
    address = re.compile("0x[0-9a-f]+")
    assert address.sub("", ours.stderr) == address.sub("", plain.stderr)
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode)


# ---- run_command, in a process of its own as in a worker


def in_worker(folder: Path, call: str, environ: dict[str, str] | None = None) -> tuple[CommandResult, str, str]:
    program = textwrap.dedent(
        f"""
        import sys
        from kos_cluster.tasks.script import CommandResult, run_command
        result = {call}
        open({os.fspath(folder)!r} + ".result", "w").write(repr(result))
        """
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environ or {})},
    )
    result = eval(Path(f"{folder}.result").read_text(), {"CommandResult": CommandResult})
    return result, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "out"),
    [
        ("echo one; echo two >&2; exit 5", 5, "one\n"),
        ("kill -TERM $$", 128 + signal.SIGTERM, ""),
        ("cat; echo end", 0, "end\n"),
        ("echo $GREETING", 0, "hello\n"),
        ("python -c 'import sys; print(sys.prefix)'", 0, f"{sys.prefix}\n"),
    ],
)
def test_a_shell_command(command: str, code: int, out: str, tmp_path: Path) -> None:
    call = f"run_command([{command!r}], shell=True, environ={{'GREETING': 'hello'}})"
    result, stdout, _ = in_worker(tmp_path, call)
    assert (result, stdout) == (CommandResult(code), out)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    result, _, stderr = in_worker(tmp_path, "run_command(['no-such-command'])", {"KOS_NODE": "n7"})
    assert result.exit_code == 127
    assert stderr == "kos: no-such-command: command not found (node n7)\n"


def test_a_file_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    result, _, stderr = in_worker(tmp_path, "run_command(['./data'])")
    assert result.exit_code == 126
    assert "Permission denied" in stderr


def test_what_a_script_writes_comes_with_its_exit_code(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "s.py").write_text(
        "import os, sys\nopen('out.txt', 'w').write(' '.join(sys.argv))\nprint(os.environ['A'])\nsys.exit(3)\n"
    )
    copy = tmp_path / "copy"
    unpack(pack(snapshot(home)), copy)
    call = "run_command(['python', 's.py', 's.py', 'b'], environ={'A': '1'}, redirect=True, script='s.py')"
    result, stdout, stderr = in_worker(copy, call)
    assert (result.exit_code, result.left_out, stdout, stderr) == (3, {}, "1\n", "")
    (member,) = read_archive(result.changes or b"")
    assert (member.path, member.content) == ("out.txt", b"s.py s.py b")


def test_variables_that_were_given_are_named_for_the_scripts_own_tasks(tmp_path: Path) -> None:
    _, stdout, _ = in_worker(tmp_path, f"run_command(['echo ${GIVEN_VARIABLES}'], shell=True, environ={{'A': '1'}})")
    assert stdout == "A\n"


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("leader", [False, True], ids=["alone", "with its group"])
def test_an_interrupt_ends_the_command_within_bounds(leader: bool, tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    program = "from kos_cluster.tasks.script import run_command; run_command(['python', 'stubborn.py'])"
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0 if leader else None,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    started = time.monotonic()
    if leader:
        os.killpg(worker.pid, signal.SIGINT)
    else:
        worker.send_signal(signal.SIGINT)
    out, err = worker.communicate(timeout=30)
    assert out == "interrupted\nterminated\n"
    assert "KeyboardInterrupt" in err
    assert time.monotonic() - started < 5


def test_cancelling_is_not_a_result() -> None:
    """A KeyboardInterrupt goes on to the worker, which tells that the task was cancelled."""
    with pytest.raises(KeyboardInterrupt):
        run_command([sys.executable, "-c", f"import os, signal; os.kill({os.getpid()}, signal.SIGINT); input()"])
