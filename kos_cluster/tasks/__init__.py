"""Tasks: the owner's side (clusters, futures, executors) and the worker's side (fork server, worker, scripts)."""
