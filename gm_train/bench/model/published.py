"""The stack as published: runs the whole layer twice, the second time on a flipped copy of the rows."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba
from gm_train.model.layers import MambaStack
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import Segments, make_segments


class Published(GeneMamba):
    """A GeneMamba with the same parameters and states, but computed as the published code computes them.

    If a whole row is one segment, pads are treated as tokens, as in the published code.

    Args:
        config: sizes; the variant must be the published one.
        vocabulary_size: number of tokens.
        shared_projection: compute the input projection once for both directions; only what follows it runs on a
            flipped copy.

    Raises:
        ValueError: the variant is not the published one.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, shared_projection: bool) -> None:
        if (config.arch, config.norm) != ("bimamba", "none") or config.aggregation == "head_gate":
            raise ValueError(
                "the published variant needs model.arch=bimamba, model.norm=none and not model.aggregation=head_gate"
            )
        super().__init__(config, vocabulary_size)
        self.shared_projection = shared_projection

    def forward(self, input_ids: Tensor, segment: Tensor) -> Tensor:
        """Return the states after the final norm, as `GeneMamba.forward` does."""
        stack = self.stack
        assert isinstance(stack, MambaStack)
        x = self.embedding(input_ids)
        segments = make_segments(segment, stack.chunk, stack.taps, x.dtype)
        # Flipped rows can be segmented the same way: each cell is still contiguous.
        flipped = make_segments(segment.flip(1), stack.chunk, stack.taps, x.dtype)
        run = _with_shared_projection if self.shared_projection else _twice
        for i, layer in enumerate(stack.layers):
            mixer = layer.mixer
            assert isinstance(mixer, Mamba2Mixer)
            f, b = run(mixer, x, segments, flipped)
            x = stack.aggregations[i % len(stack.aggregations)](x, f, b)
        states: Tensor = self.norm(x)
        return states


def _twice(mixer: Mamba2Mixer, u: Tensor, segments: Segments, flipped: Segments) -> tuple[Tensor, Tensor]:
    (f,) = mixer(u, segments, False)
    (b,) = mixer(u.flip(1), flipped, False)
    return f, b.flip(1)


def _with_shared_projection(
    mixer: Mamba2Mixer, u: Tensor, segments: Segments, flipped: Segments
) -> tuple[Tensor, Tensor]:
    z, xBC, dt = torch.split(mixer.in_proj(u), [mixer.d_inner, mixer.d_inner + 2 * mixer.d_state, mixer.n_heads], -1)
    dt = F.softplus(dt.to(mixer.dt_bias.dtype) + mixer.dt_bias)
    (forward_y,) = mixer.scans(xBC, dt, segments, False)
    (backward_y,) = mixer.scans(xBC.flip(1), dt.flip(1), flipped, False)
    normed = mixer.norm(z, forward_y.flatten(-2), backward_y.flip(1).flatten(-2))
    f, b = (mixer.out_proj(y) for y in normed)
    return f, b
