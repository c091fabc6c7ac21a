"""The live monitor of a notebook: `%kos monitor`, or `kos_kernel.monitor()`.

Here: `widget` (the widget, and what it says and hears through its comm), `panes` (what each pane is told, and can be
asked), `module` (the one ES module, put together from `static`), `still` (the picture that is kept in the notebook).
What is shown is `kos_cluster.services.monitor`'s model.
"""
