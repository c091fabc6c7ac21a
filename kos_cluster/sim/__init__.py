"""The simulator: core machines under virtual time and seeded faults, and the checker of what was recorded."""
