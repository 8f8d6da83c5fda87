"""Choose the kernels that compute what a mixer does between its projections.

`torch` means `conv.py`, `ssd.py` and `norm.py`. `mamba_ssm` means that package's kernels for the scan, written in
Triton, and ours for the rest (`mixer_op.py`). The compiled code of mamba_ssm is not needed.
"""

import functools
import importlib.util
import logging
import os
import time

import torch

from data_shards.errors import DataError
from gm_train.config.schema import Config, ModelConfig
from gm_train.model.attention import attention_kernel
from gm_train.model.kernels.scan_check import Mix, ScanSizes, scan_problem
from gm_train.model.kernels.scan_tiles import VERSION, import_package
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

    On a GPU, the kernels are tried on few tokens first, which also compiles those of the first step.

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
    return "mamba_ssm", "auto: on a GPU, and it works there" if requested == "auto" else f"model.kernel={requested}"


def scan_sizes(model: ModelConfig) -> ScanSizes:
    """Return the sizes of the scan of a layer."""
    heads = model.expand * model.d_model // model.head_dim
    both = model.arch == "bimamba"
    head_gate = both and model.aggregation == "head_gate"
    return ScanSizes(heads, model.head_dim, model.d_state, model.d_conv, 1 + both, head_gate)


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
    """Why the kernels cannot be used on a GPU, or None if they can; tried once in a process for each sizes.

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
        problem = scan_problem(kernels_of_mixer, sizes, 2 * CHUNK, place, dtype)
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
        import_package()
    except Exception as error:
        return f"cannot be imported ({error})"
    return None


def kernels_of_mixer() -> Mix:
    """The operation that a mixer runs where mamba_ssm's kernels can run."""
    from gm_train.model.kernels.mixer_op import mix  # imported late: Triton is not installed everywhere

    return lambda *inputs: mix(*inputs, CHUNK)[0]


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
