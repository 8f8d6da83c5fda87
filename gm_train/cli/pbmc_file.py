"""Find the blood cells that the demo and some ablations use."""

import importlib.util
from pathlib import Path

from data_shards.errors import DataError


def pbmc_file() -> Path:
    """Return the file of 700 labelled blood cells in scanpy's package (10x Genomics' PBMC 68k, reduced).

    Raises:
        DataError: scanpy is not installed.
    """
    spec = importlib.util.find_spec("scanpy")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("these cells come with scanpy: pip install 'gm-train[demo]'")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "10x_pbmc68k_reduced.h5ad"
