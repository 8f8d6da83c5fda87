"""The Mamba-2 mixer, in one direction or in both with shared weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.conv import DepthwiseConv
from gm_train.model.kernels import scan_kernels
from gm_train.model.loops import cpu
from gm_train.model.norm import GatedRMSNorm
from gm_train.model.segments import Segments
from gm_train.model.ssd import ssd

DT_MIN, DT_MAX = 1e-3, 1e-1  # range of initial step sizes, Mamba-2's default
A_MIN, A_MAX = 1.0, 16.0  # range of initial decay rates, Mamba-2's default


class Mamba2Mixer(nn.Module):
    """Mamba-2's mixer (Dao and Gu 2024, arXiv 2405.21060), with the parameter names and layout of mamba_ssm.

    [z, x, B, C, dt] = in_proj(u); x, B and C pass a depthwise convolution and SiLU; y = SSD(x, dt, A, B, C) + D x; the
    result is out_proj(RMSNorm(y * SiLU(z))).

    The reverse direction equals running all this on a flipped copy of each cell and flipping the result back. The input
    projection and SiLU(z) act on each position alone, and are computed once for both directions.

    With `model.aggregation=head_gate` the directions are joined before the norm and the output projection, which then
    run once: y = g y_f + (1 - g) y_b, where g is the sigmoid of one more column of in_proj for each head. Both y_f and
    y_b include the skip D x.

    `model.kernel` selects what computes the convolution, the scan and the norm; see `scan_kernels.py`. Where
    mamba_ssm's kernels can run, so can ours, and one operation does all three (`mixer_op.py`).

    Raises:
        ValueError: head_dim does not divide expand * d_model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_inner = config.expand * config.d_model
        if self.d_inner % config.head_dim:
            raise ValueError(
                f"model.head_dim={config.head_dim} does not divide model.expand * model.d_model = {self.d_inner}"
            )
        self.n_heads = self.d_inner // config.head_dim
        self.d_state = config.d_state
        self.package_devices = scan_kernels.package_devices(config.kernel, scan_kernels.scan_sizes(config))
        d_conv = self.d_inner + 2 * self.d_state
        self.head_gate = config.aggregation == "head_gate" and config.arch == "bimamba"
        n_gates = self.n_heads if self.head_gate else 0
        self.in_proj = nn.Linear(config.d_model, self.d_inner + d_conv + self.n_heads + n_gates, bias=False)
        self.conv1d = DepthwiseConv(d_conv, config.d_conv)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, config.d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the parameters that this module owns itself to Mamba-2's defaults: dt log-uniform, A uniform, D ones."""
        with torch.no_grad():
            dt = torch.empty_like(self.dt_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp()
            self.dt_bias.copy_(dt + (-torch.expm1(-dt)).log())  # the inverse of softplus
            self.A_log.uniform_(A_MIN, A_MAX).log_()
            self.D.fill_(1.0)

    def forward(self, u: Tensor, segments: Segments, bidirectional: bool) -> tuple[Tensor, ...] | Tensor:
        """Mix the tokens of each cell.

        Args:
            u: (batch, length, d_model).
            segments: boundaries of the cells in the rows.
            bidirectional: whether to read from the right as well.

        Returns:
            The output of the forward direction and, if bidirectional, of the reverse one; with `head_gate` only the
            joined output. Each is (batch, length, d_model). Two may be one array, (2, batch, length, d_model).
        """
        columns = self.in_proj(u)
        if columns.device.type in self.package_devices:
            from gm_train.model.kernels import mixer_op  # imported late: Triton is not installed everywhere

            if mixer_op.takes(columns, self.d_inner):
                cells = segments.cells if bidirectional else segments.forward.seq_idx
                mixed, *_ = mixer_op.mix(
                    columns, cells, self.conv1d.weight, self.conv1d.bias, self.dt_bias, self.A_log, self.D,
                    self.norm.weight, self.norm.eps, self.d_state, scan_kernels.CHUNK,
                )  # fmt: skip
                both: Tensor = self.out_proj(mixed)
                return both if len(both) == 2 else (both.squeeze(0),)
        widths = [self.d_inner, self.d_inner + 2 * self.d_state, self.n_heads, self.n_heads if self.head_gate else 0]
        z, xBC, dt, g = torch.split(columns, widths, dim=-1)
        # Under autocast, step sizes and decay stay in the parameters' type, float32 or wider.
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        scans = self.scans(xBC, dt, segments, bidirectional)
        if self.head_gate:
            scans = [torch.lerp(scans[1], scans[0], torch.sigmoid(g)[..., None])]
        return tuple(self.out_proj(y) for y in self.norm(z, *(y.flatten(-2) for y in scans)))

    def scans(self, xBC: Tensor, dt: Tensor, segments: Segments, bidirectional: bool) -> list[Tensor]:
        """Apply convolution, SiLU and scan.

        Args:
            xBC: (batch, length, d_inner + 2 * d_state), from the input projection.
            dt: (batch, length, heads), step sizes.
            segments: boundaries of the same rows.
            bidirectional: whether to read from the right as well.

        Returns:
            y of the forward direction and, if bidirectional, of the reverse one, each (batch, length, heads, head_dim).
        """
        A = -self.A_log.exp()
        mixed = self.conv1d(xBC, segments, bidirectional)
        return [self._scan(m, dt, A, segments, reverse=i == 1) for i, m in enumerate(mixed)]

    def _scan(self, xBC: Tensor, dt: Tensor, A: Tensor, segments: Segments, reverse: bool) -> Tensor:
        if cpu.on_cpu(xBC) and xBC.dtype == torch.float32:
            from gm_train.model.loops import scan_loops  # imported late: numba takes a second to import

            if scan_loops.takes(xBC, dt, segments.chunk, self.d_state):
                runs = segments.cells[: len(xBC)]
                return scan_loops.scan(xBC, dt, A, self.D, runs, self.d_state, segments.chunk, reverse)
        x, B, C = torch.split(xBC, [self.d_inner, self.d_state, self.d_state], dim=-1)
        x = x.view(*x.shape[:-1], self.n_heads, -1)
        return ssd(x, dt, A, B, C, self.D, segments, reverse)
