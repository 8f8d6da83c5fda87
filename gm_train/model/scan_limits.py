"""Limits of numbers in a scan, the same for every way of computing it."""

DT_FLOOR = 1e-30  # keeps the logarithm finite where softplus underflows
#: Powers of 2 below this exponent count as zero. On many CPUs, products of numbers near the smallest that a type can
#: hold (2^-126 in float32) take a hundred times as long as others.
SMALLEST = -100.0
