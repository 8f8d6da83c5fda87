"""Fix the tile sizes of mamba_ssm's scan, so that Triton does not try all of them at every start.

The package lets Triton compile and time up to eleven configurations of each kernel: over a hundred for one layer, some
of which take half a minute in float32. It repeats the timing in every process. Triton's cache of timings
(TRITON_CACHE_AUTOTUNING) leaves out kernels that clear a buffer first, as four of these do.
"""

import importlib
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

log = logging.getLogger(__name__)

#: The version of mamba_ssm that the sizes below were chosen for, as pinned in `pyproject.toml`.
VERSION = "2.3.2.post1"

_MODULES = ("ssd_bmm", "ssd_chunk_scan", "ssd_chunk_state", "ssd_combined", "ssd_state_passing")

_PRODUCT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32}
_SQUARE = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64}
#: For each kernel its tile, number of warps and number of pipeline stages. None was timed on a GPU: they are chosen by
#: what the compiler reports for bfloat16. Tiles of 64 are as wide as a head and a state of the presets, spill no
#: register on compute capabilities 8.0 and 9.0, and leave room for two or more blocks on a multiprocessor.
TILES: dict[str, tuple[dict[str, int], int, int]] = {
    "_chunk_cumsum_fwd_kernel": ({"BLOCK_SIZE_H": 16}, 4, 3),
    "_chunk_state_fwd_kernel": (_PRODUCT, 2, 4),
    "_state_passing_fwd_kernel": ({"BLOCK_SIZE": 512}, 4, 3),
    "_bmm_chunk_fwd_kernel": (_PRODUCT, 2, 4),
    "_chunk_scan_fwd_kernel": (_PRODUCT, 2, 4),
    "_chunk_scan_bwd_dstates_kernel": (_PRODUCT, 2, 4),
    "_state_passing_bwd_kernel": ({"BLOCK_SIZE": 512}, 4, 3),
    "_chunk_scan_chunk_state_bwd_dx_kernel": (_PRODUCT, 4, 4),
    "_chunk_state_bwd_db_kernel": (_SQUARE, 4, 3),
    "_chunk_scan_bwd_dc_kernel": (_SQUARE, 4, 3),
    "_chunk_scan_bwd_dcb_kernel": (_SQUARE, 4, 3),
    "_bmm_chunk_bwd_kernel": (_SQUARE | {"BLOCK_SIZE_CS": 32}, 2, 4),
    "_chunk_scan_bwd_ddAcs_stable_kernel": (_SQUARE, 4, 3),
    "_chunk_cumsum_bwd_kernel": ({"BLOCK_SIZE_H": 16}, 4, 3),
}


def fix_tiles() -> None:
    """Leave each kernel of the scan one configuration; call it before the first scan.

    With another version of the package the kernels are left alone, and Triton tries all configurations.
    """
    try:
        found = version("mamba-ssm")
    except PackageNotFoundError:
        found = "unknown"
    if found != VERSION:
        log.warning(
            "mamba_ssm %s is not the tested version, %s: no tile sizes are known for it, so every start tries over a "
            "hundred, for minutes",
            found,
            VERSION,
        )
        return
    for tuner in _tuners():
        chosen = TILES.get(tuner.fn.__name__)
        if chosen is not None:
            # MAMBA_DETERMINISTIC leaves one configuration, another one.
            fitting = [c for c in tuner.configs if (c.kwargs, c.num_warps, c.num_stages) == chosen]
            tuner.configs = fitting or tuner.configs


def _tuners() -> list[Any]:
    from triton.runtime.autotuner import Autotuner

    modules = [importlib.import_module(f"mamba_ssm.ops.triton.{name}") for name in _MODULES]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Autotuner)]
