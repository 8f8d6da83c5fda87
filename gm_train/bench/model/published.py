"""The stack as published: the whole layer run twice, the second time on a flipped copy of the rows."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba
from gm_train.model.layers import MambaStack
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import Segments, make_segments


class Published(GeneMamba):
    """A GeneMamba, with the same parameters and the same states, that computes them the published way.

    Given one segment for a whole row, it treats pads as the published code does: as tokens.

    Args:
        config: sizes; the variant must be the published one.
        vocabulary_size: number of tokens.
        shared_projection: compute the input projection once for both directions; only what follows runs on a flipped
            copy.

    Raises:
        ValueError: another variant.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, shared_projection: bool) -> None:
        if (config.arch, config.norm) != ("bimamba", "none") or config.aggregation == "head_gate":
            raise ValueError("as published: model.arch=bimamba, model.norm=none and an aggregation of whole outputs")
        super().__init__(config, vocabulary_size)
        self.shared_projection = shared_projection

    def forward(self, input_ids: Tensor, segment: Tensor) -> Tensor:
        """Final-norm states, as `GeneMamba.forward`."""
        stack = self.stack
        assert isinstance(stack, MambaStack)
        x = self.embedding(input_ids)
        there = make_segments(segment, stack.chunk, stack.taps, x.dtype)
        # In a flipped row each cell stands in one piece, too.
        back = make_segments(segment.flip(1), stack.chunk, stack.taps, x.dtype)
        run = _with_shared_projection if self.shared_projection else _twice
        for i, layer in enumerate(stack.layers):
            mixer = layer.mixer
            assert isinstance(mixer, Mamba2Mixer)
            f, b = run(mixer, x, there, back)
            x = stack.aggregations[i % len(stack.aggregations)](x, f, b)
        states: Tensor = self.norm(x)
        return states


def _twice(mixer: Mamba2Mixer, u: Tensor, there: Segments, back: Segments) -> tuple[Tensor, Tensor]:
    (f,) = mixer(u, there, False)
    (b,) = mixer(u.flip(1), back, False)
    return f, b.flip(1)


def _with_shared_projection(mixer: Mamba2Mixer, u: Tensor, there: Segments, back: Segments) -> tuple[Tensor, Tensor]:
    z, xBC, dt = torch.split(mixer.in_proj(u), [mixer.d_inner, mixer.d_inner + 2 * mixer.d_state, mixer.n_heads], -1)
    gate = F.silu(z)
    dt = F.softplus(dt.to(mixer.dt_bias.dtype) + mixer.dt_bias)
    (there_y,) = mixer.scans(xBC, dt, there, False)
    (back_y,) = mixer.scans(xBC.flip(1), dt.flip(1), back, False)
    f, b = (mixer.out_proj(mixer.norm(y.flatten(-2), gate)) for y in (there_y, back_y.flip(1)))
    return f, b
