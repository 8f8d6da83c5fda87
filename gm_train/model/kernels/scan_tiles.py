"""Launch mamba_ssm's Triton kernels, each with one size of tile.

The package lets Triton compile and time up to eleven configurations of each kernel: over a hundred for one layer, some
of which take half a minute in float32. It repeats the timing in every process. Triton's cache of timings
(TRITON_CACHE_AUTOTUNING) leaves out kernels that clear a buffer first, as four of these do. So the kernels are launched
here without the package's tuner.
"""

import functools
import importlib
import importlib.util
import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

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
}


@functools.cache
def import_package() -> None:
    """Import mamba_ssm's Triton kernels; whatever their import raises is passed on."""
    # On GPUs Triton by default rounds float32 operands to TF32, and PyTorch does not: fp32 would mean two things.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    try:
        importlib.import_module("mamba_ssm")
    except Exception as error:
        log.debug("mamba_ssm as a whole cannot be imported (%s); importing only its scan", error)
        # Its __init__ imports Mamba-1, whose scan is compiled. An empty package in its place makes its modules
        # importable.
        spec = importlib.util.find_spec("mamba_ssm")
        assert spec is not None
        sys.modules["mamba_ssm"] = importlib.util.module_from_spec(spec)
    try:
        importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except Exception:
        del sys.modules["mamba_ssm"]
        raise


@functools.cache
def kernel_of_package(name: str) -> Any:
    """The kernel of mamba_ssm with this name, without the tuner around it."""
    import_package()
    for module in _MODULES:
        tuner = getattr(importlib.import_module(f"mamba_ssm.ops.triton.{module}"), name, None)
        if tuner is not None:
            return tuner.fn
    raise ImportError(f"this version of mamba_ssm has no kernel {name}; the tested version is {VERSION}")


def tile(name: str, dimension: str) -> int:
    """Size of a kernel's tile in a dimension, "M", "N" or "K"; "" where there is only one."""
    return TILES[name][0]["_".join(["BLOCK_SIZE", dimension]).rstrip("_")]


def launch(name: str, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch a kernel of mamba_ssm.

    Args:
        name: of the kernel.
        grid: number of programs, which fits its tile.
        args: of the kernel.
        constants: of the kernel, besides those of the tile.
    """
    sizes, warps, stages = TILES[name]
    kernel_of_package(name)[grid](*args, **constants, **sizes, num_warps=warps, num_stages=stages)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launch kernels on the GPU that has the tensor: Triton takes the current one, which may be another."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
