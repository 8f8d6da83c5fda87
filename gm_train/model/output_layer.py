"""Compute logits over the vocabulary, or a cross-entropy without ever holding all of them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_shards.tokens.vocabulary import FIRST_GENE

#: Logits that the cross-entropy holds at a time: 128 MiB of float32.
LOGITS_AT_A_TIME = 2**25


class OutputLayer(nn.Module):
    """Logits over the vocabulary, with weights of its own or those of the embedding.

    With the embedding's weights, states are divided by sqrt(d_model), as in T5 (arXiv 1910.10683): the embedding has
    unit variance, which mixers without a norm before them need, but which would make the first logits far too large.

    Args:
        d_model: width of the states.
        vocabulary_size: number of tokens, special ones included.
        tied: use the embedding's weights.
    """

    def __init__(self, d_model: int, vocabulary_size: int, tied: bool) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(d_model)
        self.weight = None if tied else nn.Parameter(torch.empty(vocabulary_size, d_model))
        self.bias = nn.Parameter(torch.empty(vocabulary_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights uniformly within ± 1 / sqrt(d_model), as PyTorch does for a linear layer; set the bias to 0."""
        if self.weight is not None:
            nn.init.uniform_(self.weight, -self.scale, self.scale)
        nn.init.zeros_(self.bias)

    def forward(
        self, states: Tensor, embedding: Tensor, targets: Tensor | None = None, shown: Tensor | None = None
    ) -> Tensor:
        """Compute logits, or the sum of their cross-entropy.

        Both go through `forward`, because sharded strategies gather the module's weights around its call.

        Args:
            states: (..., d_model).
            embedding: (vocabulary_size, d_model), used if tied.
            targets: int64, of the leading shape of `states`, negative where nothing is predicted; with `shown` bool
                (..., vocabulary_size), the set of tokens that each state predicts, over which its cross-entropy is
                averaged, empty where nothing is predicted; None: return the logits.
            shown: bool (..., vocabulary_size), tokens without a probability; so are the special ones.

        Returns:
            Logits (..., vocabulary_size), or the cross-entropy, a scalar in nats, at least float32.
        """
        weight: Tensor = embedding if self.weight is None else self.weight
        if self.weight is None:
            states = states * self.scale
        if targets is None:
            return F.linear(states, weight, self.bias)
        device = states.device.type
        if torch.is_autocast_enabled(device):
            states = states.to(torch.get_autocast_dtype(device))
        with_gradients = torch.is_grad_enabled()
        of_states: _Tokens | _Sets = _Tokens(targets.flatten())
        if shown is not None:
            of_states = _Sets(targets.flatten(0, -2), shown.flatten(0, -2))
        loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            states.flatten(0, -2), weight, self.bias, of_states, with_gradients
        )
        return loss


@dataclass(frozen=True)
class _Tokens:
    """One target for each of some states: int64 (n,), negative where nothing is predicted."""

    targets: Tensor

    def part(self, first: int, n_rows: int) -> "_Tokens":
        """The targets of states `first` and later ones."""
        return _Tokens(self.targets[first : first + n_rows])

    @property
    def counts(self) -> Tensor:
        """Which states predict: bool (n, 1)."""
        return self.targets[:, None] >= 0

    def exclude(self, logits: Tensor) -> None:
        """Every token has a probability."""

    def mean_logit(self, logits: Tensor) -> Tensor:
        """The logits of the targets, (n, 1)."""
        return logits.gather(1, self.targets[:, None].clamp(min=0))

    def gradient(self, powers: Tensor, sums: Tensor) -> Tensor:
        """The gradient of the logits, in place of their powers (n, vocabulary_size), whose sums are (n, 1)."""
        # Divided by infinity, the gradient of a pad is 0, without a further pass over the logits.
        powers.div_(sums.masked_fill(~self.counts, math.inf))
        return powers.scatter_add_(1, self.targets[:, None].clamp(min=0), -self.counts.to(powers.dtype))


@dataclass(frozen=True)
class _Sets:
    """A set of targets for each of some states, none where nothing is predicted, and the tokens that it shows.

    Both are bool (n, vocabulary_size).
    """

    targets: Tensor
    shown: Tensor

    def part(self, first: int, n_rows: int) -> "_Sets":
        """The sets of states `first` and later ones."""
        return _Sets(self.targets[first : first + n_rows], self.shown[first : first + n_rows])

    @property
    def counts(self) -> Tensor:
        """Which states predict: bool (n, 1)."""
        return self.targets.any(-1, keepdim=True)

    def exclude(self, logits: Tensor) -> None:
        """Take the probability from shown and special tokens."""
        logits.masked_fill_(self.shown, -torch.inf)
        logits[:, :FIRST_GENE] = -torch.inf

    def mean_logit(self, logits: Tensor) -> Tensor:
        """Mean logits of the targets, (n, 1)."""
        return logits.masked_fill(~self.targets, 0.0).sum(-1, keepdim=True) / self._n_targets

    def gradient(self, powers: Tensor, sums: Tensor) -> Tensor:
        """The gradient of the logits, in place of their powers (n, vocabulary_size), whose sums are (n, 1)."""
        powers.div_(sums.masked_fill(~self.counts, math.inf))
        return powers.sub_(self.targets.to(powers.dtype) / self._n_targets)

    @property
    def _n_targets(self) -> Tensor:
        return self.targets.sum(-1, keepdim=True).clamp(min=1)


class _CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of states W^T + bias, a few rows at a time.

    The gradient is computed in the forward pass, while the logits of these rows are in memory: nothing is computed
    twice, and only arrays of the inputs' size are kept for the backward pass. Matrix products are computed in the type
    of the states; everything else, the sums over chunks included, in the type of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, targets: _Tokens | _Sets, with_gradients: bool
    ) -> Tensor:
        narrow = weight.to(states.dtype)
        total = torch.zeros((), dtype=weight.dtype, device=states.device)
        if with_gradients:
            d_states, d_weight, d_bias = torch.empty_like(states), torch.zeros_like(weight), torch.zeros_like(bias)
        n_rows = max(1, LOGITS_AT_A_TIME // len(weight))
        for first in range(0, len(states), n_rows):
            part, target = states[first : first + n_rows], targets.part(first, n_rows)
            logits = (part @ narrow.T).to(weight.dtype).add_(bias)
            target.exclude(logits)
            logits -= logits.amax(-1, keepdim=True)
            of_target = target.mean_logit(logits)
            sums = logits.exp_().sum(-1, keepdim=True)
            total += (sums.log() - of_target).masked_fill(~target.counts, 0.0).sum()
            if with_gradients:
                d_logits = target.gradient(logits, sums)
                d_bias += d_logits.sum(0)
                d_logits = d_logits.to(states.dtype)
                torch.mm(d_logits, narrow, out=d_states[first : first + n_rows])
                d_weight += d_logits.T @ part
        if with_gradients:
            ctx.save_for_backward(d_states, d_weight, d_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_weight, d_bias = ctx.saved_tensors
        (scale,) = grads
        return d_states * scale.to(d_states.dtype), d_weight * scale, d_bias * scale, None, None
