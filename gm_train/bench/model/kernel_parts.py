"""Forward and backward pass of each part of a mixer, where kernels compute them (`mixer_op.py`), to be timed alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from gm_train.model.kernels import scan_kernels
from gm_train.model.mixer import Mamba2Mixer


def kernel_parts(mixer: Mamba2Mixer, columns: Tensor, cells: Tensor) -> dict[str, Callable[[], None]]:
    """Return what runs a part both ways, by the name of the part.

    Args:
        mixer: whose sizes and parameters are used.
        columns: (batch, length, columns), from the input projection.
        cells: int32 (directions * batch, length), as `mixer_op.mix` takes them.
    """
    # Imported late: Triton is not installed everywhere.
    from gm_train.model.kernels.conv_kernels import conv_backward, conv_forward
    from gm_train.model.kernels.norm_kernels import norm_backward, norm_forward
    from gm_train.model.kernels.package_scan import scan_backward, scan_forward
    from gm_train.model.kernels.step_kernels import steps_backward, steps_forward

    columns = columns.detach()
    taps, bias, dt_bias, A_log, D, weight = (
        value.detach()
        for value in (
            mixer.conv1d.weight.flatten(1), mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D, mixer.norm.weight
        )
    )  # fmt: skip
    widths = [mixer.d_inner, len(bias), mixer.n_heads, mixer.n_heads * mixer.head_gate]
    z, xBC, raw, gates = torch.split(columns, widths, dim=-1)
    shares = gates if mixer.head_gate else None
    d_columns, chunk = torch.empty_like(columns), scan_kernels.CHUNK
    mixed = conv_forward(xBC, cells, taps, bias)
    directions = len(cells) // len(columns)
    dt, decay = steps_forward(raw, dt_bias, A_log, directions, chunk)
    y, _ = scan_forward(mixed, dt, decay, D, cells, mixer.d_state)
    d_out = torch.randn_like(norm_forward(z, shares, y, weight, mixer.norm.eps))
    d_raw = torch.randn(len(cells), *raw.shape[1:], device=columns.device)

    def convolution() -> None:
        conv_forward(xBC, cells, taps, bias)
        conv_backward(mixed, xBC, cells, taps, bias, d_raw, d_columns[..., mixer.d_inner : sum(widths[:3])])

    def scan() -> None:
        dt, decay = steps_forward(raw, dt_bias, A_log, directions, chunk)
        _, states = scan_forward(mixed, dt, decay, D, cells, mixer.d_state)
        steps_backward(raw, dt_bias, A_log, dt, scan_backward(y, mixed, dt, decay, D, cells, states)[1])

    def norm() -> None:
        norm_forward(z, shares, y, weight, mixer.norm.eps)
        norm_backward(d_out, z, shares, y, weight, mixer.norm.eps, d_columns)

    return {"convolution": convolution, "scan": scan, "gate and norm": norm}
