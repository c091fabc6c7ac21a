"""What a supervisor writes of its engine, when the cluster cannot decide and when there is another supervisor."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from kos_cluster.core.replicated.settings import VALUE_LIMIT_BYTES
from kos_cluster.errors import LimitError
from kos_cluster.services.engines import ledger as ledgers
from kos_cluster.services.engines.engine import Address, Standing
from kos_cluster.services.engines.ledger import Ledger, Superseded
from kos_cluster.services.engines.registers import decoded, encoded, records, strangers
from kos_cluster.services.engines.spec import Began, Record, State, Wanted, head_of, record_of, shortened, wanted_of
from kos_cluster.services.engines.troubles import Troubles
from tests.engines.supervised import Registers


def made(name: str = "dask", id_: str = "e1") -> Record:
    return Record(name, "dask", id_, "j1", State.STARTING, 3, 1, 0, 0, False, 0.0)


def ledger(registers: Registers, record: Record | None = None) -> Ledger:
    return Ledger(cast(Any, registers), record or made(), Troubles("dask"))


def held(registers: Registers) -> Record:
    return decoded("", registers.held[record_of("dask")], Record)


def test_of_two_who_want_a_name_one_gets_it() -> None:
    registers = Registers()
    assert ledger(registers).claim() is None
    former = ledger(registers, made(id_="e2")).claim()
    assert former is not None
    assert (former.id, held(registers).id) == ("e1", "e1")


def test_who_follows_a_lost_supervisor_goes_on_and_the_former_one_ends() -> None:
    registers = Registers()
    first, second = ledger(registers), ledger(registers)
    first.claim()
    first.write(state=State.SERVING, address=Address("tls://x:1"))
    former = second.claim()
    assert former is not None
    assert former.address.head == "tls://x:1"
    second.write(life=2)
    first.forget()  # it does not know yet
    with pytest.raises(Superseded, match="Another supervisor has taken over"):
        first.write(workers=2)
    first.forget()  # which it has no right to any more
    assert held(registers).life == 2


@pytest.mark.parametrize("fails", ["done", "lost"])
def test_a_write_without_an_answer_is_made_good_by_the_next(fails: str) -> None:
    registers = Registers()
    written = ledger(registers)
    written.claim()
    registers.fails = fails
    written.write(workers=1)
    written.write(workers=2)
    assert held(registers).workers == 2


def test_what_the_head_counts_is_written_seldom_and_its_workers_at_once() -> None:
    registers = Registers()
    written = ledger(registers)
    written.claim()
    written.count(Standing(["a"], 5, 0, 0))
    before = registers.writes
    for waiting in range(100):
        written.count(Standing(["a"], waiting, 0, 0))
    assert registers.writes - before <= 1
    written.count(Standing(["a", "b"], 7, 0, 0))
    assert (held(registers).workers, held(registers).waiting) == (2, 7)


def test_wishes_and_heads_of_other_engines_and_lives_are_not_heard() -> None:
    registers = Registers()
    written = ledger(registers)
    written.claim()
    registers.held[wanted_of("dask")] = encoded(Wanted("w1", "e0", 5))
    registers.held[head_of("dask")] = encoded(Began("e1", 2, Address("tls://x:1")))
    assert (written.wanted(), written.began()) == (None, None)
    registers.held[wanted_of("dask")] = encoded(Wanted("w2", "e1", 5))
    written.write(life=2)
    wanted, began = written.wanted(), written.began()
    assert wanted is not None
    assert began is not None
    written.answer(wanted, "no room")
    assert written.wanted() is None
    written.forget()
    assert registers.held == {}


def test_the_longest_record_fits_a_register() -> None:
    why = shortened("ü" * 5000)
    record = made("n" * 32)
    fields = {
        "why": why,
        "refusal": why,
        "node": "n" * 64,
        "address": Address("tls://" + "h" * 253),
    }
    text = encoded(msgspec.structs.replace(record, **fields))
    assert len(text.encode()) <= VALUE_LIMIT_BYTES


def test_a_register_that_is_no_record_is_told_and_hides_no_engine() -> None:
    registers = {"engine.speed": "42", "other": "x", record_of("dask"): encoded(made()), wanted_of("dask"): "x"}
    assert [each.name for each in records(registers)] == ["dask"]
    (error,) = strangers(registers)
    assert "engine.speed holds nothing that this version knows of an engine" in error.message
    assert error.hint == "If nobody needs it, type 'kos register engine.speed --unset'."


def test_what_full_registers_refuse_is_told_once_and_written_later(capsys: pytest.CaptureFixture[str]) -> None:
    registers = Registers()
    written = ledger(registers)
    written.claim()
    registers.refuses = LimitError("They are full.", "Remove one first.")
    for workers in (1, 2):
        written.write(workers=workers)
        written.catch_up()
    assert capsys.readouterr().out == "Engine dask has trouble, and goes on: They are full. Remove one first.\n"
    registers.refuses = None
    written.catch_up()
    assert held(registers).workers == 2


def test_full_registers_let_no_engine_begin() -> None:
    registers = Registers()
    registers.refuses = LimitError("They are full.")
    with pytest.raises(LimitError):
        ledger(registers).claim()


def test_what_is_no_record_is_written_over_and_what_was_removed_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "CHECKED_AGAIN_S", 0.0)
    registers = Registers()
    written = ledger(registers)
    written.claim()
    registers.held[record_of("dask")] = "junk"
    written.catch_up()
    written.catch_up()
    assert held(registers).id == "e1"
    del registers.held[record_of("dask")]
    with pytest.raises(Superseded, match="was removed"):
        written.catch_up()
    written.forget()
    assert registers.writes == 2


def test_what_is_no_wish_is_told_and_the_next_one_heard(capsys: pytest.CaptureFixture[str]) -> None:
    registers = Registers()
    written = ledger(registers)
    written.claim()
    registers.held[wanted_of("dask")] = "junk"
    assert (written.wanted(), written.wanted()) == (None, None)
    assert capsys.readouterr().out.count("The register engine.dask.wanted holds nothing") == 1
    registers.held[wanted_of("dask")] = encoded(Wanted("w1", "e1", 5))
    assert written.wanted() == Wanted("w1", "e1", 5)
