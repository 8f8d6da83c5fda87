"""Compile a layer's kernels for a GPU on a machine without one; `python -m tests.support.compile_ahead` prints JSON.

Triton asks a driver for the device that it compiles for. A stand-in answers: a GPU of the given compute capability.
Kernels are compiled as they are for the real one, and not launched. Changes Triton and torch in this process for good:
start it in a process of its own, with an empty TRITON_CACHE_DIR.
"""

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from gm_train.config.parts import load_part
from gm_train.config.schema import ModelConfig
from gm_train.model.kernels import scan_kernels
from gm_train.model.kernels.scan_check import scan_problem
from gm_train.model.layers import MambaLayer
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import make_segments

#: Bytes of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide, Table 15).
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}


@dataclass(frozen=True)
class Compiled:
    """A kernel for one set of arguments.

    Attributes:
        kernel: its name.
        seconds: time to compile it.
        shared: bytes of shared memory of a block.
        stack: bytes of registers that a thread spills to memory.
    """

    kernel: str
    seconds: float
    shared: int
    stack: int


@dataclass
class Compiler:
    """Compiles each kernel that is launched, once, in place of launching it.

    Attributes:
        compiled: what was compiled so far.
    """

    compiled: list[Compiled] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keys: set[Any] = set()

    @contextlib.contextmanager
    def instead_of_launching(self, capability: int) -> Iterator[None]:
        """Let kernels be compiled for GPUs of a compute capability, such as 90, wherever the block launches one."""
        driver.set_active(_Driver(capability))
        run = JITFunction.run

        def compile_one(function: Any, *args: Any, **options: Any) -> Any:
            if options.get("warmup"):
                return run(function, *args, **options)
            return self._compile(function, args, options)

        JITFunction.run = compile_one
        try:
            yield
        finally:
            JITFunction.run = run

    def _compile(self, function: Any, args: Any, options: Any) -> None:
        options = {key: value for key, value in options.items() if key not in ("grid", "warmup")}
        begun = time.perf_counter()
        kernel = function.warmup(*args, grid=(1,), **options)
        seconds = time.perf_counter() - begun
        if kernel.hash in self._keys:
            return
        self._keys.add(kernel.hash)
        done = Compiled(function.__name__, round(seconds, 2), kernel.metadata.shared, _stack(kernel))
        self.compiled.append(done)


class _Driver:
    """Answers for a GPU that is not there."""

    launcher_cls = None

    def __init__(self, capability: int) -> None:
        self._capability = capability
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED[capability], "multiprocessor_count": 132}
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def _stack(kernel: Any) -> int:
    """Bytes of stack of a compiled kernel, which are spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(text.split("STACK:")[1].split()[0])


def layer(config: ModelConfig, dtype: torch.dtype) -> None:
    """Run a layer on packed rows, forward and backward, as on a GPU."""
    made = MambaLayer(config)
    aggregation = load_part("model.aggregation", config.aggregation)(config.d_model) if made.bidirectional else None
    assert isinstance(made.mixer, Mamba2Mixer)
    made.kernels_on = made.mixer.package_devices = ("cpu",)
    segment = torch.ones(2, 2048, dtype=torch.int64)
    x = torch.randn(2, 2048, config.d_model, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = made(x, make_segments(segment, config.chunk, config.d_conv), aggregation)
    out.backward(torch.ones_like(out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--arch", default="bimamba")
    parser.add_argument("--aggregation", default="gate")
    options = parser.parse_args()
    model = ModelConfig(arch=options.arch, aggregation=options.aggregation)
    compiler, dtype = Compiler(), getattr(torch, options.dtype)
    with compiler.instead_of_launching(options.capability):
        # Kernels that are not launched leave wrong numbers; what matters here is that it ran.
        problem = scan_problem(
            scan_kernels.kernels_of_mixer,
            scan_kernels.scan_sizes(model),
            2 * scan_kernels.CHUNK,
            torch.device("cpu"),
            dtype,
        )
        assert problem is not None
        assert problem.startswith("computes other numbers"), problem
        small = len(compiler.compiled)
        layer(model, dtype)
    compiled = [asdict(one) for one in compiler.compiled]
    print(json.dumps({"compiled": compiled[:small], "layer_adds": compiled[small:]}))
