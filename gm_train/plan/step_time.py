"""Seconds of a training step: modelled from a data sheet, or scaled from a few measured steps."""

from dataclasses import dataclass, replace

from gm_train.config.schema import Config
from gm_train.model.kernels.scan_kernels import CHUNK
from gm_train.plan.devices import Device
from gm_train.plan.kernel_costs import costs

#: Kernels that run once a step, on the parameters that a rank holds.
_ONCE = ("clipping", "optimizer")


@dataclass(frozen=True)
class Measured:
    """A few real steps of the model on this machine.

    Attributes:
        tokens: token slots of the measured micro-batch.
        pass_s: seconds of its forward and backward pass.
        update_s: seconds of clipping and the optimizer, of a whole model.
        peak_bytes: peak memory of the step, weights included; None if the system does not report it.
        device: where it ran, in words.
        memory: bytes of memory that a rank has there.
        on_gpu: whether it ran on a GPU.
    """

    tokens: int
    pass_s: float
    update_s: float
    peak_bytes: int | None
    device: str
    memory: int
    on_gpu: bool


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of a step.

    Attributes:
        pass_s: forward and backward pass of a micro-batch.
        update_s: clipping and the optimizer.
        basis: where the numbers come from, for the report.
    """

    pass_s: float
    update_s: float
    basis: str


def modelled_time(
    config: Config, vocabulary_size: int, micro_rows: int, n_held: int, device: Device, share: float
) -> StepTime:
    """Model a step by the roofline of each kernel: the slower of its operations and its bytes, over an assumed share.

    Args:
        config: sizes, precision, rows.
        vocabulary_size: number of tokens.
        micro_rows: rows of a forward pass.
        n_held: parameters that a rank updates.
        device: peaks of the GPU.
        share: share of the roofline that is assumed to be reached.
    """
    precision, objective = config.trainer.precision, config.objective
    slots = micro_rows * config.data.row_length
    rate = objective.target_rate
    narrow = 2 if precision == "bf16" else 4
    kernels = costs(
        replace(config.model, chunk=CHUNK), vocabulary_size, slots, max(1, round(rate * slots)), n_held, narrow
    )
    seconds = {
        kernel.name: kernel.count * max(kernel.flops / device.flops[precision], kernel.n_bytes / device.bandwidth)
        for kernel in kernels
    }
    update = sum(seconds.pop(name) for name in _ONCE)
    # Layers compute their forward pass once more.
    again = 4 / 3 if config.trainer.activation_checkpointing else 1.0
    basis = (
        f"modelled, not measured: {share:.0%} of the roofline of each kernel at {device.flops[precision] / 1e12:.4g} "
        f"TFLOP/s ({precision}) and {device.bandwidth / 1e12:.4g} TB/s ({device.source})"
    )
    return StepTime(again * sum(seconds.values()) / share, update / share, basis)


def scaled_time(measured: Measured, micro_tokens: int) -> StepTime:
    """Scale measured steps to a micro-batch of `micro_tokens` token slots: its passes take as long a token."""
    basis = f"measured on this machine ({measured.device}) with {measured.tokens:,} tokens, scaled by tokens"
    return StepTime(measured.pass_s * micro_tokens / measured.tokens, measured.update_s, basis)
