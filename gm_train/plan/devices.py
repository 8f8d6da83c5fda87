"""What the data sheets of GPUs promise, for plans of jobs on machines that are not at hand."""

import re
from dataclasses import dataclass, replace

from gm_train.config.schema import ClusterConfig

#: Share of the roofline that a step is assumed to reach; it was not measured. At 24 x 512 in bf16 the roofline of an
#: H200's data sheet is 1.27 million tokens a second. What the layers move, counted (`gm-train bench model --traffic`),
#: allows 0.9 million at the sheet's bandwidth; at 70 % of it and 5 µs a launch, 0.57 million. A plan assumes less.
ASSUMED_SHARE = 0.35
#: Share of a device's memory that a run may fill; the rest is the CUDA context and gaps between allocations.
USABLE = 0.92
#: Share by which a planned memory may be wrong: what the comparison with real steps on CPUs allows
#: (tests/unit/gm_train/plan/test_plan_against_real_steps.py). None was compared on a GPU.
ERROR = 0.25


@dataclass(frozen=True)
class Device:
    """What a rank computes on.

    Attributes:
        name: what it is called in words.
        flops: dense operations a second by `trainer.precision`; fp32 without TF32, as gm-train computes it.
        bandwidth: bytes a second of its memory.
        memory: bytes; None if it is not known.
        source: the data sheet.
        on_gpu: whether it is a GPU on which mamba_ssm computes the scan.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float
    memory: float | None
    source: str
    on_gpu: bool = True


_H100_SHEET = "NVIDIA H100 Tensor Core GPU datasheet, SXM"
#: The GPUs that plans know, by the name that `--device` and `cluster.gpu_type` give them.
DEVICES = {
    "a100": Device(
        "A100 SXM 80 GB",
        {"bf16": 312e12, "fp32": 19.5e12},
        2.039e12,
        80e9,
        "NVIDIA A100 Tensor Core GPU datasheet, SXM 80 GB",
    ),
    "h100": Device("H100 SXM 80 GB", {"bf16": 989.5e12, "fp32": 67e12}, 3.35e12, 80e9, _H100_SHEET),
    "h200": Device(
        "H200 SXM 141 GB",
        {"bf16": 989.5e12, "fp32": 67e12},
        4.8e12,
        141e9,
        "NVIDIA H200 Tensor Core GPU datasheet, SXM",
    ),
}


def known_device(gpu_type: str) -> str | None:
    """Return the device that a site's name of its GPUs contains, such as h100 for `nvidia_h100_80gb`; None if none."""
    # Another letter before it makes it another GPU: GH200.
    return next((name for name in DEVICES if re.search(rf"(?<![a-z]){name}", gpu_type.lower())), None)


def sheet_of_gpu(name: str) -> Device | None:
    """Return the data sheet of a GPU by the name that its driver gives it; None if there is none of that very kind.

    Args:
        name: such as "NVIDIA H100 80GB HBM3". Slices of a GPU, and the slower H100 on PCIe cards, have no sheet here.
    """
    known = known_device(name)
    other = re.search(r"\bMIG\b", name) or (known != "a100" and re.search(r"PCIe|NVL", name))
    return None if known is None or other else DEVICES[known]


def device_of_cluster(cluster: ClusterConfig) -> Device:
    """Return the GPU of a job, as far as its settings name it; its memory is None if they do not.

    The memory is `cluster.gpu_memory_gb`, or what the name of the type says, as `a100_40gb` and slices of a GPU do, or
    that of the data sheet. The speed of a GPU without a data sheet is taken to be that of an H100.
    """
    known = known_device(cluster.gpu_type)
    sheet = DEVICES[known or "h100"]
    named = re.search(r"(\d+)gb", cluster.gpu_type.lower())
    if cluster.gpu_memory_gb is not None:
        memory: float | None = cluster.gpu_memory_gb * 1e9
    elif named is not None:
        memory = float(named[1]) * 1e9
    else:
        memory = sheet.memory if known else None
    if known and memory == sheet.memory:
        return sheet
    size = "unknown memory" if memory is None else f"{memory / 1e9:g} GB"
    return replace(sheet, name=f"a GPU of {size}, taken to be as fast as {sheet.name}", memory=memory)
