"""What the data sheets of GPUs promise, for plans of jobs on machines that are not at hand."""

from dataclasses import dataclass

#: Share of the roofline that a step is assumed to reach; it was not measured. At 24 x 512 in bf16 the roofline of an
#: H200's data sheet is 1.27 million tokens a second. The bytes and launches of today's kernels, counted, give 0.15 to
#: 0.19.
ASSUMED_SHARE = 0.13
#: Share of a device's memory that a run may fill; the rest is the CUDA context and gaps between allocations.
USABLE = 0.92


@dataclass(frozen=True)
class Device:
    """A kind of GPU.

    Attributes:
        name: what it is called in words.
        flops: dense operations a second by `trainer.precision`; fp32 without TF32, as gm-train computes it.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        source: the data sheet.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float
    memory: float
    source: str


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
    return next((name for name in DEVICES if name in gpu_type.lower()), None)
