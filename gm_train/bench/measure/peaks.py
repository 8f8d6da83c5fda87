"""Measure the machine's peaks: matrix products and memory bandwidth."""

from dataclasses import dataclass

import torch

from gm_train.bench.measure.clock import Clock

#: Sides of the square products that are tried, by device type; the fastest one counts.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
#: Elements of each float32 array of the triad: far more than any cache holds.
TRIAD = {"cpu": 1 << 25, "cuda": 1 << 28}
_REPEATS = 5


@dataclass(frozen=True)
class Peaks:
    """The best of several tries.

    Attributes:
        flops: operations per second of a matrix product, in the dtype of the benchmark.
        side: side of the square matrices that reached it.
        bandwidth: bytes per second of the triad a = b + s c, which moves three arrays.
    """

    flops: float
    side: int
    bandwidth: float

    def best(self, other: "Peaks") -> "Peaks":
        """Combine two measurements: the better value of each figure."""
        faster = self if self.flops >= other.flops else other
        return Peaks(faster.flops, faster.side, max(self.bandwidth, other.bandwidth))


def roofline_seconds(flops: float, n_bytes: float, peaks: Peaks) -> float:
    """Return the least seconds that a kernel needs (Williams et al. 2009, doi:10.1145/1498765.1498785).

    Args:
        flops: operations of the kernel.
        n_bytes: bytes that it moves.
        peaks: of the machine.
    """
    return max(flops / peaks.flops, n_bytes / peaks.bandwidth)


class PeakRunner:
    """Measures the peaks in a worker process, with as many threads as the contenders have.

    Args:
        precision: `trainer.precision`; gives the dtype of the products.
        device: cpu or cuda.
    """

    def __init__(self, precision: str, device: str) -> None:
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = torch.device(device)
        self._clock = Clock(self._device)

    def run(self) -> Peaks:
        """Measure the matmul peak and the memory bandwidth."""
        rates = {side: self._product_rate(side) for side in SIDES[self._device.type]}
        side = max(rates, key=lambda side: rates[side])
        return Peaks(rates[side], side, self._bandwidth())

    def _product_rate(self, side: int) -> float:
        a, b = (torch.randn(side, side, device=self._device).to(self._dtype) for _ in range(2))
        out = torch.empty_like(a)
        # Repeat small products within a try: otherwise the launch would dominate the time.
        inner = max(1, (SIDES[self._device.type][-1] // side) ** 3 // 8)
        best = float("inf")
        for _ in range(_REPEATS + 1):  # one more to warm up
            self._clock.start()
            for _ in range(inner):
                torch.mm(a, b, out=out)
            best = min(best, self._clock.stop() / inner)
        return 2.0 * side**3 / best

    def _bandwidth(self) -> float:
        n = TRIAD[self._device.type]
        b, c = (torch.ones(n, device=self._device) for _ in range(2))
        a = torch.empty_like(b)
        best = float("inf")
        for _ in range(_REPEATS + 1):
            self._clock.start()
            torch.add(b, c, alpha=0.5, out=a)
            best = min(best, self._clock.stop())
        return 3.0 * a.numel() * a.element_size() / best
