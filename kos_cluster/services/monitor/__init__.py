"""What is seen of a cluster over time: the one model that the notebook's monitor, `kos top`, `kos metrics` and the
desktop read.

Here: `snapshot` (what is known at one moment), `changes` (what lies between two of them, as events), `series` (bounded
histories of figures), `model` (all of it, kept up by snapshots), `sampler` (makes snapshots of a live cluster),
`pacing` (samples while somebody looks), `tasklist` (the tasks of one job, a window at a time), `exporter` and
`endpoint` (Prometheus). The first four are pure: no clock, thread, socket or widget in them.
"""
