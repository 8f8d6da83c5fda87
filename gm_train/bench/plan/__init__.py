"""`gm-train bench plan`: a plan beside a real run on this machine."""
