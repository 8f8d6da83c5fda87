"""Benchmarks: contenders side by side on one machine, in one run."""
