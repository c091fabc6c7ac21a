"""`kos bench`: the same small work on KOS, on its peers and on a bare encrypted path, interleaved in one run.

    figures.py   pure: samples to medians, ratios and what was aimed at, and the report's form
    plan.py      how much of each work is run
    systems/     one module a system, with a class for each part that it is measured in
    measure.py   the process that measures one part on one system (`python -m kos_cluster.services.bench.measure`)
    overhead.py  the part of no-ops
    parts.py     the other parts: work on four nodes, gangs, scaling
    tasks.py     what their tasks do, and `ranks.py` their ranks
    conduct.py   starts that process, bounds its time and clears away whatever it leaves
    machine.py   what the figures were measured on
    picture.py   the figures as a picture
    main.py      the command: checks, order of the runs, output
    notebook.py  `kos bench notebook`, which measures the notebook's side
    control/     `kos bench control`, which measures the control plane alone

Rules: no figure is extrapolated; a system whose results are wrong has no figure; every run is in a fresh process, with
a fresh folder that is removed afterwards, on two cores; nothing listens beyond the loopback.
"""
