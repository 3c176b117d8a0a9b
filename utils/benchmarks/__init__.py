"""Benchmarks of scripts/benchmark.py: one module per case, each with ours, a reference, and a check."""
