"""`kos bench`: the same small work on KOS, on its peers and on a bare encrypted path, interleaved in one run.

    figures.py   pure: samples to medians and ratios, and the report's form
    systems/     one module a system, all with the interface of `systems.System`
    measure.py   the process that measures one system once (`python -m kos_cluster.services.bench.measure`)
    conduct.py   starts that process, bounds its time and clears away whatever it leaves
    machine.py   what the figures were measured on
    main.py      the command: checks, order of the runs, output
    notebook.py  `kos bench notebook`, which measures the notebook's side
    control/     `kos bench control`, which measures the control plane alone

Rules: no figure is extrapolated; a system whose results are wrong has no figure; every run is in a fresh process, with
a fresh folder that is removed afterwards, on as many cores as there are workers; nothing listens beyond the loopback.
"""
