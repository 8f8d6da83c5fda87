"""Imported first in the fork server of the tests: switches the garbage collector off until `preloaded.py`."""

import gc

gc.disable()
