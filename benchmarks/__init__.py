"""Benchmarks: each verifies its results, then times A B A B in one run, and writes raw JSON."""
