"""The panes of the monitor. Each is a module here and one of the same name in `static/panes`.

A pane's module has a `NAME`; `Feed(model)`, whose `news(full)` gives what the pane is to be told: all of it, or what
has changed since it was last asked; and `ASKED`: what its front can ask for, by name, as functions of a `Desk` and the
question. A pane is added by its two files and its place in `PANES`, which is also the order in which they are shown.
"""

from kos_kernel.dashboard.panes import engines, events, nodes, summary, work

PANES = (summary, nodes, work, events, engines)
