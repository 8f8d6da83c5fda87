"""The checks of `gm-train doctor`, one file for each topic; `cluster/doctor/examine.py` runs them in order."""
