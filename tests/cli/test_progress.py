"""The terminal's view of a running job."""

import io

import msgspec
import pytest

from kos_cluster.cli.console import Console
from kos_cluster.cli.progress import TerminalSink, summary_line
from kos_cluster.core.records import JobSummary


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def job(total: int, done: int, failed: int = 0) -> JobSummary:
    return JobSummary(
        job="ab12",
        name="sweep",
        user="u",
        total=total,
        done=done,
        failed=failed,
        running=1,
        since_s=0.0,
        nodes=("desk",),
    )


def test_output_is_passed_to_the_stream_it_was_written_to() -> None:
    out, err = io.StringIO(), io.StringIO()
    sink = TerminalSink(Console(out, err), Clock())
    sink.write("ab12.0", "stdout", b"one\n")
    sink.write("ab12.0", "stderr", b"two\n")
    sink.close()
    assert (out.getvalue(), err.getvalue()) == ("one\n", "two\n")


@pytest.mark.parametrize(
    ("took_s", "summary", "said"),
    [
        (1.0, job(10, 10), ""),
        (3.0, job(10, 9, failed=1), "kos: job ab12 (sweep) 9 of 10 tasks done, 1 failed after 3.0 s on desk.\n"),
        (3.0, job(1, 1), "kos: job ab12 (sweep) ended after 3.0 s on desk.\n"),
    ],
)
def test_one_line_at_the_end_of_what_lasted(took_s: float, summary: JobSummary, said: str) -> None:
    err, clock = io.StringIO(), Clock()
    sink = TerminalSink(Console(io.StringIO(), err), clock)
    clock.now = took_s
    sink.progress(summary, "")
    sink.finished(summary)
    sink.close()
    assert err.getvalue() == said


def test_the_bar_is_on_stderr_and_gone_before_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out, err = Terminal(), Terminal()
    sink = TerminalSink(Console(out, err), Clock())
    sink.progress(job(10, 4), "")
    assert "4/10" in err.getvalue()
    sink.write("ab12.0", "stdout", b"hello\n")
    assert err.getvalue().endswith("\x1b[2K"), "the bar's line is erased"
    assert out.getvalue() == "hello\n"
    sink.close()


def test_a_job_that_waits_says_on_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    err = Terminal()
    sink = TerminalSink(Console(Terminal(), err), Clock())
    sink.progress(job(10, 4), "No node answers.")
    assert "sweep waits 4/10" in err.getvalue() and "No node answers." in err.getvalue()
    sink.close()


def test_no_bar_within_an_open_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    err = Terminal()
    sink = TerminalSink(Console(Terminal(), err), Clock())
    sink.write("ab12.0", "stdout", b"50 % so far")
    sink.progress(job(10, 5), "")
    assert err.getvalue() == ""
    sink.close()


def test_a_reader_that_went_away_interrupts_the_waiting_main_thread() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    sink = TerminalSink(Console(Gone(), io.StringIO()), Clock())
    with pytest.raises(KeyboardInterrupt):
        sink.write("ab12.0", "stdout", b"unread\n")
    assert sink.broken
    sink.write("ab12.0", "stdout", b"dropped\n")
    sink.close()


def test_the_summary_tells_what_was_run_again() -> None:
    lost = msgspec.structs.replace(job(total=9, done=9), reruns=2)
    assert summary_line(lost, 4.0) == "kos: job ab12 (sweep) 9 of 9 tasks done, 2 run again after 4.0 s on desk."
