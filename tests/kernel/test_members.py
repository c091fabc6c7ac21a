"""The commands of a cluster's members, typed in notebooks: to found it, join it, look after it, and leave it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Machine, _until
from tests.e2e.test_cluster import free_port
from tests.kernel.kernels import Cell, Kernel


class Notebook:
    """A notebook on a machine of its own, with the KOS kernel's extension."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.listen = f"127.0.0.1:{free_port()}"
        self.kernel = Kernel({"KOS_HOME": str(self.machine.home)})
        self.ok("%load_ext kos_kernel")

    def ok(self, code: str) -> Cell:
        cell = self.kernel.run(code)
        assert not cell.error, cell.shown()
        return cell

    def sentence(self, code: str) -> str:
        (line,) = self.kernel.run(code).error["traceback"]
        return str(line)

    def states(self) -> dict[str, str]:
        """The nodes that this machine's cluster has, and how each is."""
        self.ok("nodes = %kos nodes")
        return dict(eval(self.kernel.value("[(node['name'], node['state']) for node in nodes]")))

    def drained(self) -> str:
        self.ok("nodes = %kos nodes")
        return self.kernel.value("[node['name'] for node in nodes if node['drained']]")

    def end(self) -> None:
        self.kernel.stop()
        self.machine.kos("down")
        self.machine.end()


@pytest.fixture(scope="module")
def founder() -> Iterator[Notebook]:
    made = Notebook()
    yield made
    made.end()


@pytest.fixture(scope="module")
def member() -> Iterator[Notebook]:
    made = Notebook()
    yield made
    made.end()


def test_a_notebook_founds_a_cluster_and_another_joins_it(founder: Notebook, member: Notebook) -> None:
    shown = founder.ok(f"%kos cluster create lab --listen {founder.listen} --name desk").text()
    join = re.search(r"kos cluster join lab \S+ --token (KOS1\.\S+)", shown)
    assert join, shown
    assert "this machine is its node rack1" in member.ok(f"%{join[0]} --listen {member.listen} --name rack1").text()
    _until(lambda: founder.states() == member.states() == {"desk": "alive", "rack1": "alive"}, "both know both")


def test_a_token_is_printed_for_a_role(founder: Notebook) -> None:
    assert re.fullmatch(r"KOS1\.\S+\n", founder.ok("%kos cluster token --role client").text())
    assert "--role" in founder.sentence("%kos cluster token --role king")


def test_a_member_is_drained_and_works_again(founder: Notebook) -> None:
    founder.ok("%kos cluster drain rack1")
    _until(lambda: founder.drained() == "['rack1']", "it is drained")
    founder.ok("%kos cluster drain rack1 --undo")
    _until(lambda: founder.drained() == "[]", "it works again")
    assert "7\n" in founder.ok("%kos cluster exec rack1 echo 7").text()


def test_a_certificate_is_renewed(founder: Notebook) -> None:
    assert "rack1" in founder.ok("%kos cluster rotate rack1").text()


def test_a_name_that_is_taken_and_a_node_that_is_not_there_are_sentences(founder: Notebook) -> None:
    assert "'lab'" in founder.sentence("%kos cluster create lab")
    for line in ("drain attic", "remove attic", "rotate attic", "exec attic true"):
        assert "attic" in founder.sentence(f"%kos cluster {line}")


def test_a_member_leaves_and_its_notebook_says_that_it_is_in_no_cluster(founder: Notebook, member: Notebook) -> None:
    member.ok("%%kos run --distribute\nsix = 6")
    assert member.ok("%kos cluster leave").text() == "This machine has left cluster 'lab'.\n"
    for line in ("%kos nodes", "%kos cluster leave", "%%kos run --distribute\n1"):
        assert "cluster" in member.sentence(line)
    _until(lambda: founder.states() == {"desk": "alive", "rack1": "left"}, "the other one knows")
    founder.ok("%%kos run --distribute\nseven = 7")


def test_the_last_one_ends_it(founder: Notebook) -> None:
    shown = founder.ok("%kos cluster leave")
    assert "This machine has left cluster 'lab'." in shown.text()
    assert "the cluster has ended" in shown.text() + shown.text("stderr")
