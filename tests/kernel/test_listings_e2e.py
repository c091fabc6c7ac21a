"""Listings and what tells of tasks, in a real kernel on a real cluster of two nodes."""

from __future__ import annotations

import html
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.clusters import kos
from tests.kernel.kernels import Kernel, ok, wait_for

COMPLETED_WITHIN_S = 0.05
STOPPED_WITHIN_S = 3.0  # the promise is 1 s; a loaded machine gets more before a test fails


def test_a_listing_is_shown_where_it_stands_alone(connected: Kernel) -> None:
    cell = ok(connected.run("%kos nodes\nfor _ in range(2):\n    %kos status\nx = 1"))
    kinds = [kind for kind, _ in cell.messages if kind != "execute_input"]
    assert kinds == ["display_data"] * 3
    bundles = [content["data"] for kind, content in cell.messages if kind == "display_data"]
    assert bundles[0]["text/plain"].count(" alive ") == 2 and bundles[0]["text/html"].count(">alive<") == 2
    assert "2 of 2 nodes alive" in bundles[1]["text/plain"] and "2 of 2 nodes alive" in bundles[1]["text/html"]


# By the words of its command, one of the keys that its object has.
LISTINGS = {
    "nodes": "name",
    "cluster nodes": "name",
    "ps": "job",
    "status": "alive",
    "cluster status": "alive",
    "story {job.task}": "number",
    "why {job.task}": "state",
    "locks": "holder",
    "mem status": "used_bytes",
    "register": "value",
    "dry-run": "standing",
    "kernel list": "name",
}


@pytest.fixture
def listed(connected: Kernel, tmp_path: Any) -> Iterator[Kernel]:
    """That kernel, while there is something to be listed of each kind."""
    source = "import os, kos_cluster\nc = kos_cluster.connect()\njob = c.submit(pow, 2, 3)\njob.result()\n"
    source += "kept = c.lock('kept')\nkept.__enter__()\nc.register('said').set('so')\n"
    source += f"os.environ['JUPYTER_PATH'] = '{tmp_path}/share/jupyter'\n%kos kernel install --prefix {tmp_path}"
    ok(connected.run(source))
    yield connected
    ok(connected.run("kept.__exit__(None, None, None)\ndel os.environ['JUPYTER_PATH']\n%kos register said --unset"))


@pytest.mark.parametrize("words", LISTINGS)
def test_every_listing_is_a_table_in_html_and_text_and_an_object(listed: Kernel, words: str) -> None:
    cell = ok(listed.run(f"%kos {words}"))
    (shown,) = [content["data"] for kind, content in cell.messages if kind == "display_data"]
    assert set(shown) == {"text/html", "text/plain"}
    assert shown["text/plain"].split()[0] in shown["text/html"]
    assert not ok(listed.run(f"found = %kos {words}")).mimes()
    assert listed.value(f"bool(found.to_dict()[{LISTINGS[words]!r}])") == "True"


def test_a_listing_that_is_assigned_is_an_object_and_shows_nothing(connected: Kernel) -> None:
    ok(connected.run("import kos_cluster, time\njob = kos_cluster.connect().submit(pow, 2, 3)\njob.result()"))
    cell = ok(connected.run("nodes = %kos nodes\njobs = %kos ps\ntasks = %kos story {job.task}\nstatus = %kos status"))
    assert cell.shown() == []
    assert connected.value("sorted(nodes.to_dict()['state']), len(nodes)") == "['alive', 'alive'] 2"
    assert (
        connected.value(
            "job.job in jobs.to_dict()['job'], [job['total'] for job in jobs if job['job'] == job_id]".replace(
                "job_id", repr(connected.value("job.job"))
            )
        )
        == "True [1]"
    )
    assert connected.value("tasks[0]['task'] == job.task, tasks[0]['end'], tasks[0]['number']") == "True done 1"
    assert connected.value("status['alive'], status.to_dict()['cluster']") == "2 local"
    assert "[execute_result] NAME " in ok(connected.run("nodes")).shown()[0]


def test_why_tells_where_tasks_are_and_what_each_node_does(connected: Kernel, home: str, tmp_path: Any) -> None:
    path = str(tmp_path / "go")
    ok(
        connected.run(
            f"import kos_cluster, os, time\ndef waits(_):\n  while not os.path.exists({path!r}): time.sleep(0.01)\n"
            "many = kos_cluster.connect().map(waits, range(4), timeout=60)"  # with a limit each is sent alone
        )
    )

    def running() -> bool:
        ok(connected.run("why = %kos why {many.job}"))
        return connected.value("sum(row['count'] for row in why if row['state'] == 'running')") == "2"

    wait_for(running)
    shown = ok(connected.run("%kos why {many.job}")).shown()[0]
    assert "it needs 1 slot. node1: all 1 slots hold work of this owner; node2: all 1 slots" in shown
    first, table = ok(connected.run("%kos dry-run ls")).shown()
    full = "node1: all 1 slots hold work of this owner"
    assert first.startswith(f"It would wait: {full}") and "NODE" in table
    job = connected.value("many.job")
    told = {task: connected.run(f"%kos story {job}.{task}").error["traceback"] for task in (3, 4)}
    assert told[3] == [f"Nothing of {job}.3 has reached a node yet. Type 'kos why {job}.3' for what it waits for."]
    assert "No node knows" in told[4][0]

    def elsewhere() -> dict[str, str]:
        """By node, in another process, which is not the owner; empty until a node has been told of the job."""
        return {row["node"]: row["why"] for row in json.loads(kos("why", job, "--json", home=home).stdout or "[]")}

    wait_for(lambda: sorted(elsewhere()) == ["", "node1", "node2"])
    waiting = elsewhere()[""]
    known = f"a notebook, process {connected.value('os.getpid()')} on {socket.gethostname()}, of "
    assert f"knows why: {known}" in waiting and f"In that notebook type '%kos why {job}'." in waiting
    assert re.search(r"Slots free: node1 \d of 1, node2 \d of 1$", waiting)
    ok(connected.run(f"open({path!r}, 'w').close()\nlist(many)\nwhy = %kos why {{many.job}}.3"))
    assert connected.value("[(row['state'], row['why']) for row in why]") == "[('done', 'it is over: done')]"
    assert "No node knows a job or task 'nothing'" in connected.run("%kos why nothing").error["traceback"][0]


def test_a_dry_run_tells_where_and_is_an_object_where_it_is_assigned(connected: Kernel) -> None:
    cell = ok(connected.run("where = %kos dry-run --away-from node1 ls"))
    (shown,) = cell.shown()
    assert re.fullmatch(r"It would go to node2: \d of 1 slots free\.\n", shown)
    assert connected.value("where.to_dict()['node'], where[0]['standing']") == (
        "['node1', 'node2'] the task is to be away from it"
    )
    shown = ok(connected.run("%kos dry-run --on node2 ls")).shown()
    assert shown[0].startswith("It would go to node2: ") and "the task asks for node2" in shown[1]
    assert json.loads(ok(connected.run("%kos dry-run --on node2 --json ls")).text())["node"] == "node2"
    assert "No node is named 'nowhere'." in connected.run("%kos dry-run --on nowhere ls").error["traceback"][0]


def test_a_task_that_failed_tells_what_it_raised(connected: Kernel, home: str, tmp_path: Any) -> None:
    """In the notebook, from the nodes, and in a report."""
    ok(connected.run("import kos_cluster\nf = kos_cluster.connect().submit(int, 'seven')\nf.exception()"))
    said = "ValueError: invalid literal for int() with base 10: 'seven'"
    assert connected.value("f.story().attempts[-1].cause") == said
    for line in ("%kos story {f.task}", "%kos why {f.task}"):
        assert said in ok(connected.run(line)).shown()[0]
    assert said in kos("story", connected.value("f.task"), home=home).stdout
    ok(connected.run(f"%kos report {tmp_path}/out.html"))
    assert html.escape(said) in (tmp_path / "out.html").read_text()
