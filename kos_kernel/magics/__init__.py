"""The `%kos` and `%%kos` magics: parsing, completion, and running cells on the cluster.

Here: `command` (what is typed), `completion`, `names` (what a cell reads and assigns), `travel` and `digest` (how
variables go and come back), `cells` (the notebook's side of a run), `running` and `shell` (the worker's side).
"""
