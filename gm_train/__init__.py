"""Packed cells to a trained GeneMamba: model, objective, training, checkpoints, evaluation, command line."""

import os

# Before torch loads OpenMP: threads that wait spin for microseconds, not milliseconds. On idle cores that costs
# nothing; on busy ones the default makes two threads several times slower than one.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
