"""Stories that several nodes tell are put together; errors for tasks that were given up say what happened."""

from __future__ import annotations

from kos_cluster.core.records import Attempt, AttemptEnd, Story, TaskState
from kos_cluster.errors import TaskLostError, TaskTimeoutError
from kos_cluster.tasks.losses import loss_error
from kos_cluster.tasks.stories import merged


def story(task: str, state: TaskState, *attempts: Attempt) -> Story:
    return Story(task, "work", state, attempts)


def test_attempts_of_several_nodes_stand_in_order():
    first = Attempt(1, "node1", 1.0, 1.1, 2.0, AttemptEnd.NODE_LOST, "power cut")
    second = Attempt(2, "node2", 2.1, 2.2, 3.0, AttemptEnd.DONE)
    (told,) = merged([[story("j.0", TaskState.DONE, second)], [story("j.0", TaskState.FAILED, first)]])
    assert told.state is TaskState.DONE or told.attempts[-1].end is AttemptEnd.DONE
    assert [a.number for a in told.attempts] == [1, 2]


def test_who_knows_an_attempts_end_is_believed():
    open_ = Attempt(1, "node1", 1.0)
    ended = Attempt(1, "node1", 1.0, 1.1, 2.0, AttemptEnd.DONE)
    (told,) = merged([[story("j.0", TaskState.SENT, open_)], [story("j.0", TaskState.DONE, ended)]])
    assert [a.end for a in told.attempts] == [AttemptEnd.DONE]
    assert told.state is TaskState.DONE


def test_tasks_stand_in_numerical_order():
    one = Attempt(1, "node1", 1.0)
    told = merged([[story(f"j.{n}", TaskState.SENT, one) for n in (10, 9, 2)]])
    assert [s.task for s in told] == ["j.2", "j.9", "j.10"]


def test_errors_name_cause_node_attempts_and_the_next_step():
    killed = loss_error("j.1", AttemptEnd.WORKER_LOST, "node2", 4, "SIGKILL")
    assert isinstance(killed, TaskLostError)
    assert "node2" in str(killed) and "4 attempts" in str(killed) and "SIGKILL, cause unknown" in str(killed)
    assert "kos story j.1" in str(killed)
    memory = loss_error("j.1", AttemptEnd.OUT_OF_MEMORY, "node2", 2, "SIGKILL")
    assert "out of memory" in str(memory) and "cause unknown" not in str(memory)
    assert isinstance(loss_error("j.1", AttemptEnd.TIMEOUT, "node2", 1, ""), TaskTimeoutError)
    assert "(1 attempt; power cut)." in str(loss_error("j.1", AttemptEnd.NODE_LOST, "node2", 1, "power cut."))
