"""Benchmarks and evaluations that are run by hand."""
