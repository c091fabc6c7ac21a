"""The widget: what it says to its front end and hears from it, through its comm and nothing else.

Theory of operation. `first` is all that a front end needs to paint at once; after that come news, once a second while
somebody looks: all of it to whoever begins to look, else what has changed. Questions are answered by number, in
threads, since a kernel that runs a cell may hear them on a thread of its own that must not be held up.

Rules: what comes from the front end is checked, and asks for nothing that its user's role does not allow (the nodes
check that again). Limits: `ASKED_LIMIT` questions at once; beyond them the answer is a sentence.
"""

from __future__ import annotations

import contextvars
import sys
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, ClassVar

import anywidget
import msgspec
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import publish_display_data

from kos_cluster.core.roles import Command, Role, may
from kos_cluster.errors import KosError
from kos_cluster.services.monitor.tasklist import TaskList
from kos_kernel.dashboard import module, still
from kos_kernel.dashboard.panes import PANES
from kos_kernel.dashboard.panes.desk import Answer, Desk
from kos_kernel.dashboard.watch import Watch, watch

ASKED_LIMIT = 32  # questions of one monitor that are being answered
ANSWERERS_LIMIT = 3  # threads that answer them
STILL_EVERY_S = 10.0  # the picture in the notebook is this old at most
ANSWERS: dict[tuple[str, str], Answer] = {(pane.NAME, what): do for pane in PANES for what, do in pane.ASKED.items()}


class Ask(msgspec.Struct, frozen=True):
    """A question of the front end, for the pane of this name."""

    view: str
    number: int
    pane: str
    what: str
    message: dict[str, Any]


class Monitor(anywidget.AnyWidget):
    """The live monitor of a cluster. Show it as a cell's last expression, or by `display`."""

    _esm: ClassVar[str] = module.source()
    _css: ClassVar[str] = module.style()
    first = traitlets.Dict().tag(sync=True)
    allowed = traitlets.Dict().tag(sync=True)

    def __init__(self, cluster: str | None = None) -> None:
        """Raises what `kos.connect` raises."""
        self._watch: Watch = watch(cluster)
        self._pacing = self._watch.pacing
        self._feeds = {pane.NAME: pane.Feed(self._watch.model) for pane in PANES}
        self._desk = Desk(self._watch.model, self._pacing.lock, self._watch.sampler.cluster, TaskList())
        self._answerers = ThreadPoolExecutor(ANSWERERS_LIMIT, thread_name_prefix="kos-monitor-answer")
        self._places = BoundedSemaphore(ASKED_LIMIT)
        self._views: set[str] = set()  # that look
        self._stills: list[str] = []  # display ids of the pictures
        self._stills_made_s = 0.0
        self._context = contextvars.copy_context()
        with self._pacing.lock:
            first = self._news(full=True)
            role = Role(self._watch.model.role or Role.OBSERVER)
        self._unasked = _without_request()
        self._unasked.copy().run(super().__init__, first=first, allowed=_allowed(role))
        self.on_msg(self._heard)
        self._watch.listeners.append(self._sampled)
        shell = get_ipython()
        if shell is not None:
            shell.events.register("pre_run_cell", self._cell_begins)
            shell.events.register("post_run_cell", self._cell_ended)

    def send(self, content: Any, buffers: Any = None) -> None:
        """Say something to the front end, as an answer to no request."""
        self._unasked.copy().run(super().send, content, buffers)

    def close(self) -> None:
        """End it, in the notebook too."""
        if self._sampled in self._watch.listeners:
            self._watch.listeners.remove(self._sampled)
            for view in self._views:
                self._pacing.look_away(view)
            self._answerers.shutdown(wait=False, cancel_futures=True)
            shell = get_ipython()
            if shell is not None:
                shell.events.unregister("pre_run_cell", self._cell_begins)
                shell.events.unregister("post_run_cell", self._cell_ended)
        super().close()

    def _ipython_display_(self) -> None:
        """The live monitor, and below it the picture for when there is none."""
        with self._pacing.lock:
            words = still.text(self._watch.model)
            picture = still.bundle(self._watch.model)
        if get_ipython() is None or not hasattr(get_ipython(), "kernel"):
            print(words)
            return
        live = {"application/vnd.jupyter.widget-view+json": _view_of(self.model_id), "text/plain": words}
        publish_display_data(live)
        self._stills.append(f"kos-still-{uuid.uuid4().hex}")
        publish_display_data(picture, transient={"display_id": self._stills[-1]})

    # ---- saying

    def _news(self, full: bool) -> dict[str, Any]:
        model = self._watch.model
        return {
            "kind": "news",
            "full": full,
            "cluster": model.cluster,
            "identity": model.identity,
            "role": model.role,
            "at_s": model.at_s,
            "trouble": model.trouble,
            "panes": {name: feed.news(full) for name, feed in self._feeds.items()},
        }

    def _sampled(self) -> None:
        """Called after each sample, under the lock."""
        if self._views:
            self.send(self._news(full=False))
            if time.monotonic() - self._stills_made_s > STILL_EVERY_S:
                self._show_stills()

    def _show_stills(self) -> None:
        self._stills_made_s = time.monotonic()
        picture = still.bundle(self._watch.model)
        for id_ in self._stills:
            self._context.run(publish_display_data, picture, transient={"display_id": id_}, update=True)

    # ---- hearing

    def _heard(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        match content:
            case {"kind": "look", "view": str(view)}:
                self._pacing.look(view)
                if view not in self._views or not content.get("again"):
                    with self._pacing.lock:
                        self._views.add(view)
                        self.send(self._news(full=True))
            case {"kind": "away", "view": str(view)}:
                self._pacing.look_away(view)
                with self._pacing.lock:
                    self._views.discard(view)
                    self._show_stills()
            case {"kind": "ask"}:
                self._asked(content)

    def _asked(self, content: dict[str, Any]) -> None:
        try:
            ask = msgspec.convert(content, Ask)
        except msgspec.ValidationError as error:
            print(f"kos: the monitor was asked what is no question: {error}", file=sys.stderr)
            return
        if not self._places.acquire(blocking=False):
            self._answer(ask, error="The monitor is asked too much at once. Ask again in a moment.")
            return
        self._answerers.submit(self._look_up, ask)

    def _look_up(self, ask: Ask) -> None:
        try:
            answer = ANSWERS.get((ask.pane, ask.what))
            if answer is None:
                self._answer(ask, error=f"The monitor cannot be asked for {ask.pane} {ask.what}.")
            else:
                self._answer(ask, value=answer(self._desk, ask.message))
        except KosError as error:
            self._answer(ask, error=str(error))
        except Exception as error:
            traceback.print_exc()
            self._answer(ask, error=f"An error in KOS itself: {error!r}. Please report it.")
        finally:
            self._places.release()

    def _answer(self, ask: Ask, value: Any = None, error: str = "") -> None:
        self.send({"kind": "answer", "view": ask.view, "number": ask.number, "value": value, "error": error})

    def _cell_begins(self, *_: object) -> None:
        self._pacing.hold()

    def _cell_ended(self, *_: object) -> None:
        self._pacing.release()


def _without_request() -> contextvars.Context:
    """A context in which the kernel answers no request.

    ipykernel has what a front end says to a widget heard by the thread whose request the widget answered last. Of a
    widget that answers none, a front end says by itself who is to hear it: a thread that no cell holds up.
    """
    context = contextvars.copy_context()
    parent = getattr(getattr(get_ipython(), "kernel", None), "_shell_parent", None)
    if isinstance(parent, contextvars.ContextVar):
        context.run(parent.set, {})
    return context


def _allowed(role: Role) -> dict[str, bool]:
    """What the front end offers to somebody of this role."""
    return {
        "cancel": may(role, Command.SUBMIT),
        "drain": may(role, Command.DRAIN_NODE),
        "remove": may(role, Command.REMOVE_NODE),
    }


def _view_of(model_id: str) -> dict[str, Any]:
    return {"version_major": 2, "version_minor": 0, "model_id": model_id}
