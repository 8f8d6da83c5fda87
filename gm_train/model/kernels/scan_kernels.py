"""Choose the kernel that computes the scan, and call the kernels of the package mamba_ssm.

`torch` means `ssd.py` and `conv.py`. `mamba_ssm` means the package's scan, written in Triton, and the convolution of
causal_conv1d where that package is installed. Neither causal_conv1d nor the compiled code of mamba_ssm is needed.
"""

import functools
import importlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from data_shards.errors import DataError
from gm_train.config.schema import Config, ModelConfig
from gm_train.model.attention import attention_kernel
from gm_train.model.kernels.scan_check import ScanSizes, scan_problem
from gm_train.model.kernels.scan_tiles import VERSION, fix_tiles
from gm_train.ranks.ranks import Ranks, launched

log = logging.getLogger(__name__)

#: Needs no nvcc: without these variables mamba_ssm's build compiles kernels that are not used here.
INSTALL = (
    "pip install 'gm-train[cuda]' setuptools wheel && MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE "
    f"pip install --no-cache-dir --no-build-isolation --no-deps mamba-ssm=={VERSION}"
)

#: Positions in a chunk of the package's scan, the default of its own Mamba-2. `model.chunk` is chosen for the CPU; on a
#: GPU longer chunks write fewer states to memory, and the matrix products that they add are cheap.
CHUNK = 256


def choose_kernel(
    requested: str, device: torch.device, sizes: ScanSizes, dtype: torch.dtype = torch.bfloat16
) -> tuple[str, str]:
    """Choose the kernel that computes the scan on a device.

    On a GPU, mamba_ssm is tried on a small scan first, which also compiles the kernels of the first step.

    Args:
        requested: `model.kernel`.
        device: where the model is trained.
        sizes: of the scan of a layer.
        dtype: in which a layer computes, float32 or bfloat16.

    Returns:
        "torch" or "mamba_ssm", and the reason, in one line.

    Raises:
        DataError: `model.kernel` is `mamba_ssm`, which cannot run here.
    """
    if requested == "torch":
        return "torch", "model.kernel=torch"
    if requested == "auto" and device.type != "cuda":
        return "torch", "auto: mamba_ssm is for GPUs"
    if device.type != "cuda" and not _interpreted():
        raise DataError(
            f"model.kernel={requested}: its kernels run on a GPU, and this is a {device.type} device: set "
            "model.kernel=auto or start on GPUs"
        )
    problem, remedy = package_problem(), f": {INSTALL}"
    if problem is None and device.type == "cuda":
        problem, remedy = launch_problem(sizes, device, dtype), ""
    if problem is not None and requested == "auto":
        return "torch", f"auto: mamba_ssm {problem}{remedy}"
    if problem is not None:
        remedy = f"{remedy}, or" if remedy else ":"
        raise DataError(f"model.kernel={requested}: the package {problem}{remedy} set model.kernel=torch")
    conv = package_convolution()
    convolution = "causal_conv1d, for sizes that it supports" if conv else "a Triton kernel of gm-train"
    why = "auto: on a GPU, and it works there" if requested == "auto" else f"model.kernel={requested}"
    return "mamba_ssm", f"{why}; convolution by {convolution}"


def scan_sizes(model: ModelConfig) -> ScanSizes:
    """Return the sizes of the scan of a layer."""
    return ScanSizes(model.expand * model.d_model // model.head_dim, model.head_dim, model.d_state)


def package_devices(requested: str, sizes: ScanSizes) -> tuple[str, ...]:
    """The types of device on which a model computes with mamba_ssm; elsewhere it computes with `torch`.

    A checkpoint can therefore be used where the kernel that trained it cannot run.

    Args:
        requested: `model.kernel`.
        sizes: of the scan of a layer.
    """
    types: tuple[str, ...] = ("cuda",) if requested != "torch" and torch.cuda.is_available() else ()
    if requested == "mamba_ssm" and _interpreted():
        types += ("cpu",)
    if not types or package_problem() is not None:
        return ()
    if "cuda" in types and launch_problem(sizes) is not None:
        types = types[1:]
    return types


_launched: dict[ScanSizes, str | None] = {}


def launch_problem(
    sizes: ScanSizes, device: torch.device | None = None, dtype: torch.dtype = torch.bfloat16
) -> str | None:
    """Why mamba_ssm's scan cannot be used on a GPU, or None if it can; tried once in a process for each sizes.

    Args:
        sizes: of the scan of a layer.
        device: the GPU; None for that of this rank.
        dtype: in which a layer computes, if this is not known already.
    """
    if sizes not in _launched:
        log.info(
            "compiling mamba_ssm's kernels for %d heads of %d and states of %d: seconds, less if %s has them",
            sizes.heads,
            sizes.head_dim,
            sizes.d_state,
            os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache"),
        )
        begun = time.perf_counter()
        place = device or (launched() or Ranks()).device()
        problem = scan_problem(package_ssd, sizes, 2 * CHUNK, place, dtype)
        seconds = time.perf_counter() - begun
        if problem is None:
            log.info("mamba_ssm's kernels compiled and tried in %.1f s", seconds)
        else:
            log.warning("mamba_ssm %s; tried for %.1f s", problem, seconds)
        _launched[sizes] = problem
    return _launched[sizes]


def _interpreted() -> bool:
    """Whether Triton's interpreter runs kernels on the CPU, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def package_problem() -> str | None:
    """Why the scan of mamba_ssm cannot be imported, or None if it can."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "is not installed"
    # A package that was compiled for another PyTorch may fail with other errors than ImportError.
    try:
        _package_scan()
    except Exception as error:
        return f"cannot be imported ({error})"
    return None


@functools.cache
def _package_scan() -> Callable[..., Tensor]:
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
        module = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except Exception:
        del sys.modules["mamba_ssm"]
        raise
    fix_tiles()
    scan: Callable[..., Tensor] = module.mamba_chunk_scan_combined
    return scan


@functools.cache
def package_convolution() -> Callable[..., Tensor] | None:
    """The function of causal_conv1d, or None if the package cannot be imported."""
    if _conv_problem() is not None:
        return None
    function: Callable[..., Tensor] = importlib.import_module("causal_conv1d").causal_conv1d_fn
    return function


@functools.cache
def _conv_problem() -> str | None:
    """Why causal_conv1d, which is compiled code, cannot be imported, or None if it can."""
    if importlib.util.find_spec("causal_conv1d") is None:
        return "is not installed"
    try:
        importlib.import_module("causal_conv1d")
    except Exception as error:
        return f"cannot be imported ({error})"
    return None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def package_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor) -> Tensor:
    """Scan packed rows from the left with mamba_ssm's kernels; no information passes from one cell to another.

    A compiled graph breaks here, since Triton compiles the kernels.

    Args:
        x: (batch, length, heads, head_dim), float32 or bfloat16.
        dt: float32 (batch, length, heads), positive step sizes. The decay is computed in float32.
        A: float32 (heads,), negative.
        B: (batch, length, d_state), in the type of `x`.
        C: (batch, length, d_state), in the type of `x`.
        D: float32 (heads,), weight of the skip connection.
        seq_idx: int32 (batch, length), another number for each cell of a row and for its unused tail.

    Returns:
        y, (batch, length, heads, head_dim), in the type of `x`.
    """
    return _package_scan()(x, dt, A, B[:, :, None], C[:, :, None], CHUNK, D=D, seq_idx=seq_idx)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def package_conv(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor) -> Tensor:
    """Convolve packed rows from the left with causal_conv1d, and apply SiLU.

    Args:
        x: (batch, length, channels).
        weight: (channels, taps); the last tap is for the token itself.
        bias: (channels,), in the type of `weight`.
        seq_idx: int32 (batch, length), as in `package_ssd`.

    Returns:
        (batch, length, channels), in the type of `x`.
    """
    convolve = package_convolution()
    assert convolve is not None
    # The kernel reads eight channels at once, and x is a slice of the input projection's output.
    if any(stride % 8 for stride in (*x.stride()[:2], x.storage_offset())):
        x = x.contiguous()
    return convolve(x.transpose(1, 2), weight, bias, seq_idx=seq_idx, activation="silu").transpose(1, 2)


def package_conv_takes(channels: int, taps: int) -> bool:
    """Whether causal_conv1d can be imported and has a kernel for these sizes."""
    return 2 <= taps <= 4 and channels % 8 == 0 and package_convolution() is not None


def kernel_of(config: Config, device: torch.device) -> tuple[str, str]:
    """Choose the kernel of the scan, or of the transformer's attention, on a device.

    Returns:
        The name of the kernel, and the reason, in one line.

    Raises:
        DataError: the kernel that `model.kernel` names cannot run there.
    """
    model = config.model
    dtype = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    if model.arch == "transformer":
        return attention_kernel(device, dtype, model.d_model // model.n_heads)
    return choose_kernel(model.kernel, device, scan_sizes(model), dtype)
