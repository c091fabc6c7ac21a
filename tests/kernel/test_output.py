"""Remote output in a real kernel: it finds its cell from a thread, whatever runs meanwhile."""

from __future__ import annotations

import io
from typing import Any

import pytest

from kos_cluster.core.records import JobSummary
from kos_kernel import output
from kos_kernel.bar import LineBar
from kos_kernel.output import CellSink

SINKS = """
import threading
from kos_cluster.tasks import output
def in_thread(*calls):
    def work():
        for name, *arguments in calls:
            getattr(sink, name)(*arguments)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.fixture(scope="module")
def sinks(kernel: Any) -> Any:
    assert not kernel.run(SINKS).error
    return kernel


def test_output_lands_in_the_cell_that_made_the_sink(sinks: Any) -> None:
    first = sinks.run("sink = output.default_sink()\nprint('local')")
    second = sinks.run(
        "print('second')\n"
        "in_thread(('write', 'j.0', 'stdout', b'one\\n'), ('write', 'j.0', 'stderr', b'two\\n'),\n"
        "  ('display', 'j.0', {'kind': 'display_data', 'data': {'text/plain': 'three'}}),\n"
        "  ('write', 'j.0', 'stdout', b'four\\n'),\n"
        "  ('display', 'j.0', {'kind': 'execute_result', 'data': {'text/plain': '5'}}))\n"
        "print('second again')"
    )
    sinks.wait(lambda: "[execute_result] 5" in first.shown())
    assert first.shown() == ["local\n", "one\n", "two\n", "[display_data] three", "four\n", "[execute_result] 5"]
    assert second.text() == "second\nsecond again\n"


def test_results_carry_the_number_of_their_cell(sinks: Any) -> None:
    cell = sinks.run(
        "sink = output.default_sink()\n"
        "in_thread(('display', 'j.0', {'kind': 'execute_result', 'data': {'text/plain': 'x'}}))"
    )
    numbers = {kind: content.get("execution_count") for kind, content in cell.messages}
    assert numbers["execute_result"] == numbers["execute_input"]


def test_prints_and_displays_keep_their_order(sinks: Any) -> None:
    cell = sinks.run(
        "sink = output.default_sink()\nin_thread(*[call for n in range(5) for call in (\n"
        "  ('write', 'j.0', 'stdout', b'p%d' % n), ('display', 'j.0', {'text/plain': f'd{n}'}))])"
    )
    assert cell.shown() == [part for n in range(5) for part in (f"p{n}", f"[display_data] d{n}")]


def test_one_cell_has_one_sink(sinks: Any) -> None:
    assert sinks.value("output.default_sink() is output.default_sink()") == "True"
    sinks.run("sink = output.default_sink()")
    assert sinks.value("output.default_sink() is sink") == "False"


def test_captured_output_stays_captured(sinks: Any) -> None:
    cell = sinks.run(
        "%%capture taken\nsink = output.default_sink()\n"
        "in_thread(('write', 'j.0', 'stdout', b'mine'), ('display', 'j.0', {'text/plain': 'shown'}))"
    )
    assert cell.shown() == []
    assert sinks.value("taken.stdout, len(taken.outputs)") == "mine 1"


def test_progress_is_one_display_that_ends_as_a_line(sinks: Any) -> None:
    cell = sinks.run(
        "from kos_cluster.core.records import JobSummary\nsink = output.default_sink()\n"
        "s = JobSummary('j', 'n', 'u', total=8, done=2, failed=0, running=2, since_s=0, nodes=('n1', 'n2'))\n"
        "w = JobSummary('j', 'n', 'u', total=8, done=2, failed=0, running=0, since_s=0)\n"
        "e = JobSummary('j', 'n', 'u', total=8, done=8, failed=0, running=0, since_s=0, nodes=('n1', 'n2'))\n"
        "in_thread(('progress', s, ''), ('progress', w, 'No node <answers>.'), ('finished', e))"
    )
    assert [kind for kind, _ in cell.progress()] == ["display_data", "update_display_data", "update_display_data"]
    texts = [content["data"]["text/plain"] for _, content in cell.progress()]
    assert "2/8 done, 2 running on n1, n2" in texts[0]
    assert "2/8 done, waiting: No node <answers>." in texts[1]
    assert "2/8 done, waiting: No node &lt;answers&gt;." in cell.progress()[1][1]["data"]["text/html"]
    assert "kos: 8 tasks on n1, n2 in 2.0 s" in texts[-1]
    assert len({content["transient"]["display_id"] for _, content in cell.progress()}) == 1


def test_a_job_that_ends_soon_shows_no_progress(sinks: Any) -> None:
    cell = sinks.run(
        "sink = output.default_sink()\nin_thread(('finished', JobSummary('j', 'n', 'u', 1, 1, 0, 0, since_s=0)))"
    )
    assert cell.progress() == []


def test_a_character_split_between_messages_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    sink = CellSink(None)
    first, second = "é".encode()[:1], "é".encode()[1:]
    sink.write("j.0", "stdout", b"a" + first)
    sink.write("j.1", "stdout", b"b")
    sink.write("j.0", "stdout", second)
    assert capsys.readouterr().out == "abé"


def test_output_over_the_limit_is_cut_with_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "OUTPUT_LIMIT_BYTES", 10)
    sink = CellSink(None)
    for _ in range(5):
        sink.write("j.0", "stdout", b"1234")
    shown = capsys.readouterr()
    assert shown.out == "12341234" and shown.err.count("kos logs j") == 1


def test_in_a_terminal_displays_show_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    CellSink(None).display("j.0", {"kind": "execute_result", "data": {"text/plain": "42"}})
    assert capsys.readouterr().out == "42\n"


def test_a_file_gets_only_the_last_line_of_a_bar() -> None:
    stream = io.StringIO()
    bar = LineBar(stream)
    summary = JobSummary("j", "n", "u", total=2, done=1, failed=1, running=0, since_s=0, nodes=("n1",), reruns=1)
    bar.show(summary, "")
    bar.finish(summary)
    assert stream.getvalue() == "kos: 2 tasks on n1 in 2.0 s, 1 failed, 1 run again\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_on_what_a_task_waits_is_told_once_in_a_line(stream: io.StringIO) -> None:
    bar = LineBar(stream)
    for waits in ("", "No node answers. Type 'kos up'.", "No node answers. Type 'kos up'."):
        bar.show(JobSummary("j", "n", "u", total=1, done=0, failed=0, running=int(not waits), since_s=0), waits)
    assert stream.getvalue().count("kos: waiting: No node answers. Type 'kos up'.\n") == 1
    assert stream.getvalue().count("waiting: see above") == 2 * stream.isatty()
