"""Tables and streams: what reaches a terminal, a pipe and a notebook."""

import io
import json

import pytest

from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, ago, plain

COLUMNS = (Column("NAME"), Column("SLOTS", right=True), Column("STATE"))


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_table_is_aligned_and_has_no_trailing_blanks() -> None:
    out = io.StringIO()
    plain(COLUMNS, [["desk", "2", "alive"], ["a-longer-name", "16", ""]], out)
    assert out.getvalue() == (
        "NAME           SLOTS  STATE\n"
        "desk               2  alive\n"
        "a-longer-name     16\n"
    )  # fmt: skip


def test_cells_cannot_steer_the_terminal() -> None:
    for out in (io.StringIO(), Terminal()):
        Console(out, io.StringIO()).table(COLUMNS, [["\x1b[2Jevil\r\n", "1", "alive"]])
        assert "\x1b[2J" not in out.getvalue()
        assert "\r" not in out.getvalue()
        assert "evil" in out.getvalue()


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_terminal_table_honours_no_color(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    out = Terminal()
    Console(out, io.StringIO()).table(COLUMNS, [["desk", "2", "alive"]])
    assert ("\x1b[32m" in out.getvalue()) is coloured
    assert "desk" in out.getvalue()


def test_dumb_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    Console(out, io.StringIO()).table(COLUMNS, [["desk", "2", "alive"]])
    assert "\x1b" not in out.getvalue()


def test_json_goes_to_stdout_alone() -> None:
    out, err = io.StringIO(), io.StringIO()
    Console(out, err).json([{"name": "dësk"}])
    assert json.loads(out.getvalue()) == [{"name": "dësk"}]
    assert err.getvalue() == ""


def test_raw_bytes_pass_unchanged_to_a_binary_stream_and_readably_to_a_text_stream() -> None:
    binary = io.BytesIO()
    wrapped = io.TextIOWrapper(binary)
    Console(wrapped, io.StringIO()).raw(wrapped, b"\xff\n")
    assert binary.getvalue() == b"\xff\n"
    text = io.StringIO()
    Console(text, io.StringIO()).raw(text, b"ok \xff\n")
    assert text.getvalue() == "ok \N{REPLACEMENT CHARACTER}\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.5, "9.5 s"), (75, "75 s"), (300, "5 m"), (7200, "2 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert ago(seconds) == said
