"""On CI, no test is skipped for want of a package that `make setup` installs."""

import importlib.util
import os

import pytest

PACKAGES = ("dask_jobqueue", "fla", "mamba_ssm", "scanpy", "scib_metrics", "transformers", "triton", "umap")


@pytest.mark.skipif("CI" not in os.environ, reason="elsewhere, tests that need a missing package skip")
@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_is_installed(package: str) -> None:
    assert importlib.util.find_spec(package) is not None
