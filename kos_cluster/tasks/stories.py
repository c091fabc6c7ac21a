"""Stories that several nodes tell of the same tasks, put together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kos_cluster.core.records import Attempt, AttemptEnd, Story, TaskState

_KNOWN_LATER = {AttemptEnd.OPEN: frozenset(AttemptEnd), AttemptEnd.DONE: frozenset({AttemptEnd.RESULT_LOST})}
_FINAL = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED)


def merged(told: Iterable[list[Story]]) -> list[Story]:
    """One story a task, its attempts in the order of sending. Of one attempt, who knows its end is believed."""
    by_task: dict[str, list[Story]] = {}
    for stories in told:
        for story in stories:
            by_task.setdefault(story.task, []).append(story)
    return [_merge(stories) for _, stories in sorted(by_task.items(), key=lambda item: _order(item[0]))]


def earlier(stories: Iterable[Story], attempt: int) -> dict[int, list[Attempt]]:
    """The attempts before this one, by the tasks' indices."""
    return {_order(story.task)[1]: [a for a in story.attempts if a.number < attempt] for story in stories}


def _merge(stories: list[Story]) -> Story:
    attempts: dict[tuple[int, str], Attempt] = {}
    for story in stories:
        for attempt in story.attempts:
            key = (attempt.number, attempt.node)
            known = attempts.get(key)
            if known is None or attempt.end in _KNOWN_LATER.get(known.end, ()):
                attempts[key] = attempt
    ordered = sorted(attempts.values(), key=lambda a: (a.number, a.sent_s))
    last = max(stories, key=lambda s: (s.state in _FINAL, max(a.number for a in s.attempts)))
    return msgspec.structs.replace(last, attempts=tuple(ordered))


def _order(task: str) -> tuple[str, int]:
    job, _, index = task.partition(".")
    return job, int(index)
