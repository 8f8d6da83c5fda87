"""Benchmarks that compare several contenders on one machine, in one run."""
