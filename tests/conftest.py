"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Compiling a kernel on the first example takes seconds; on CI the examples are the same each time.
settings.register_profile("gm-train", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("gm-train")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cells and gene sets, named by GM_TEST_DATA."""
    if "GM_TEST_DATA" not in os.environ:
        pytest.skip("GM_TEST_DATA is not set: the folder with scp1884_gut_1020.h5ad")
    return Path(os.environ["GM_TEST_DATA"])
