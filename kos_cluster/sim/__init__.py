"""The simulator: runs the core machines under virtual time."""
