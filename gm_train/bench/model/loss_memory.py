"""Measure the peak memory that the output layer and its loss add to a step, forward and backward."""

import torch
from torch.nn import functional as F

from gm_train.bench.measure.peak_memory import PeakMemory
from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba

#: The published sizes: rows, tokens per row, width, vocabulary, fraction of predicted positions.
ROWS, LENGTH, D_MODEL, VOCABULARY, MASK_RATE = 32, 2048, 512, 25_426, 0.15


class LossMemoryRunner:
    """An output layer with random states, measured in a fresh process.

    Args:
        whole_logits: keep the logits of all predicted positions, as plain code does.
        n_tokens: number of states.
        d_model: width of a state.
        vocabulary_size: number of tokens.
        device: cpu or cuda.
    """

    def __init__(self, whole_logits: bool, n_tokens: int, d_model: int, vocabulary_size: int, device: str) -> None:
        torch.manual_seed(0)
        self._device, self._whole = torch.device(device), whole_logits
        config = ModelConfig(d_model=d_model, n_layers=1, head_dim=d_model)
        self._model = GeneMamba(config, vocabulary_size).to(self._device)
        self._states = torch.randn(n_tokens, d_model, device=self._device).requires_grad_()
        self._at = (torch.rand(n_tokens) < MASK_RATE).nonzero()[:, 0].to(self._device)
        self._targets = torch.randint(2, vocabulary_size, (len(self._at),), device=self._device)

    def run(self) -> dict[str, int | None]:
        """Return the number of predicted positions, and the bytes added to states and weights, gradients included."""
        memory = PeakMemory(self._device)
        memory.reset()
        states = self._states[self._at]
        if self._whole:
            loss = F.cross_entropy(self._model.logits(states), self._targets, reduction="sum")
        else:
            loss = self._model.language_loss(states, self._targets)
        torch.autograd.backward(loss / len(self._targets))
        return {"targets": len(self._targets), "added": memory.added()}
