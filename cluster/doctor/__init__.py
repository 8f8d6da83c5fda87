"""What `gm-train doctor` looks at, one file for each topic; `cluster/doctor/examine.py` has their order."""
