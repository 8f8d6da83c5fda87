"""What `gm-train doctor` looks at, one file for each topic; `cluster/doctor.py` has their order."""
