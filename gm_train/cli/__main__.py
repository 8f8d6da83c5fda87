"""`python -m gm_train.cli`: the same as `gm-train`."""

import sys

from gm_train.cli.main import main

sys.exit(main())
