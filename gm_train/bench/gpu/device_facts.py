"""The part `machine`: the device, the kernel that it gets, the time of its first scan, and its peaks."""

import shutil
import subprocess
import time
from dataclasses import asdict

import torch

from gm_train.bench.gpu.scene import Row, Scene, say
from gm_train.bench.measure.peaks import PeakRunner
from gm_train.model.kernels.scan_kernels import kernel_of


def measure_machine(scene: Scene) -> None:
    """Keep the facts of the device, the choice of the kernel and the peaks in bf16."""
    device = torch.device(scene.device)
    results: Row = {"device": _device(device)}
    scene.keep(results)
    say(f"device: {results['device']['name']}")
    started = time.perf_counter()
    kernel, why = kernel_of(scene.config(), device)
    # On a GPU this compiles the kernels of the scan and tries them.
    results["kernel"] = {"kernel": kernel, "why": why, "chosen_s": time.perf_counter() - started}
    results["problems"] = (
        [f"the scan is computed by PyTorch: {why}"] if device.type == "cuda" and kernel == "torch" else []
    )
    scene.keep(results)
    say(f"kernel {kernel} ({why})")
    results["peaks"] = asdict(PeakRunner("bf16", scene.device).run())
    scene.keep(results)


def _device(device: torch.device) -> Row:
    if device.type == "cpu":
        return {"name": "CPU"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)
