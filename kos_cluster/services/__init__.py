"""Services built on the mesh: benchmarks today; engines, metrics and reports later."""
