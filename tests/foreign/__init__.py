"""Suites and cases of others, on a cluster that these files share."""
