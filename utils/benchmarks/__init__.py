"""Benchmarks of scripts/benchmark.py: one module per case, each with ours, what users have otherwise, and a check."""
