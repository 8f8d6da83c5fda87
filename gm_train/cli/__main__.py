"""Run `gm-train` as `python -m gm_train.cli`."""

import sys

from gm_train.cli.main import main

sys.exit(main())
