"""`kos lock` and `kos register`: what programs agree on by way of the cluster, as it is typed."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

HOLDS = "echo $KOS_LOCK $KOS_LOCK_TOKEN $$; exec sleep 300"


def holder(local: Any, *options: str) -> tuple[subprocess.Popen[str], int, int]:
    """`kos lock` with a command that goes on; its token and the command's pid."""
    typed = local.start("lock", "deploy", *options, "--", "sh", "-c", HOLDS)
    name, token, pid = typed.stdout.readline().split()
    assert name == "deploy"
    return typed, int(token), int(pid)


def ended(pid: int) -> bool:
    """Whether a process does no more; nobody may have reaped it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_command_gets_the_token_and_its_exit_code_is_passed_on(local: Any) -> None:
    tokens = []
    for code in (0, 7):
        done = local.kos("lock", "--ttl", "5s", "exits", "--", "sh", "-c", f"echo $KOS_LOCK_TOKEN; exit {code}")
        assert (done.returncode, done.stderr) == (code, "")
        tokens.append(int(done.stdout))
    assert tokens[1] > tokens[0] > 0


def test_who_finds_it_taken_is_told_by_whom_and_an_interrupt_gives_it_up(local: Any, until: Callable[..., Any]) -> None:
    typed, token, pid = holder(local)
    refused = local.kos("lock", "deploy", "--wait", "0.1s", "--", "true")
    assert refused.returncode == 18
    assert re.search(r"The lock 'deploy' .*@.* has held it for \d+ s", refused.stderr), refused.stderr
    typed.send_signal(signal.SIGINT)
    typed.communicate(timeout=20)
    assert typed.returncode == 130
    until(lambda: ended(pid), "the command ends")
    assert int(local.ok("lock", "deploy", "--no-wait", "--", "sh", "-c", "echo $KOS_LOCK_TOKEN")) > token


def test_a_terminated_kos_lock_leaves_no_command_behind(local: Any) -> None:
    typed, _, pid = holder(local)
    typed.terminate()
    typed.communicate(timeout=20)
    assert typed.returncode == 128 + signal.SIGTERM
    assert ended(pid)


def test_a_command_whose_lease_is_lost_is_stopped(local: Any, until: Callable[..., Any]) -> None:
    """Stopped past its lease as a suspended machine is; by then another has the lock."""
    typed, token, pid = holder(local, "--ttl", "1s")
    typed.send_signal(signal.SIGSTOP)
    after = local.ok("lock", "deploy", "--wait", "20s", "--", "sh", "-c", "echo $KOS_LOCK_TOKEN")
    assert int(after) > token
    typed.send_signal(signal.SIGCONT)
    _, said = typed.communicate(timeout=20)
    assert typed.returncode == 18
    assert "The command is stopped." in said
    assert "kos: The lease of the lock 'deploy'" in said
    assert ended(pid)


def test_a_command_that_ignores_sigterm_is_killed_with_its_children(local: Any, until: Callable[..., Any]) -> None:
    stubborn = "trap '' TERM; sleep 300 & echo $! $$; while :; do sleep 0.1; done"
    typed = local.start("lock", "deploy", "--", "sh", "-c", stubborn)
    child, pid = map(int, typed.stdout.readline().split())
    began_s = time.monotonic()
    typed.terminate()
    typed.communicate(timeout=20)
    assert ended(pid) and ended(child)
    assert time.monotonic() - began_s < 15


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("deploy",), 2, "No command was given. Type: kos lock deploy -- command."),
        (("deploy", "ls"), 2, "'kos lock' does not take 'ls'"),
        (("a b", "--", "true"), 2, "'a b' cannot be the name of a lock. Use up to 64 letters, digits and"),
        (("deploy", "--", "nonesuch"), 2, "There is no command 'nonesuch' to run."),
        (("deploy", "--ttl", "0.5s", "--", "true"), 2, "cannot be leased for 0.5 s. Give 1 to 86400 s."),
        (("deploy", "--ttl", "soon", "--", "true"), 2, "'soon' is not a duration"),
        (("deploy", "--wait", "1s", "--no-wait", "--", "true"), 2, "not allowed with"),
    ],
)
def test_what_cannot_be_locked_is_a_sentence(words: tuple[str, ...], code: int, said: str, local: Any) -> None:
    done = local.kos("lock", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


# ---- registers


def test_a_register_is_written_read_listed_and_removed(local: Any) -> None:
    unset = local.kos("register", "turn")
    assert (unset.returncode, unset.stdout) == (1, "")
    assert "The register turn is not set." in unset.stderr
    local.ok("register", "turn", "a", "--if-unset")
    assert local.ok("register", "turn", "b", "--if", "a") == ""
    late = local.kos("register", "turn", "c", "--if", "a")
    assert late.returncode == 19
    assert "The register turn is not what --if expects ('a'); nothing was written." in late.stderr
    assert local.ok("register", "turn") == "b\n"
    assert local.json("register") == {"turn": "b"}
    local.ok("register", "turn", "--unset")
    assert local.json("register") == {}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("a b", "1"), 2, "'a b' cannot be the name of a register."),
        (("x", "v" * 4097), 10, "takes 4,097 bytes; the limit is 4,096."),
    ],
)
def test_what_no_register_can_be_is_a_sentence(words: tuple[str, ...], code: int, said: str, local: Any) -> None:
    done = local.kos("register", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
