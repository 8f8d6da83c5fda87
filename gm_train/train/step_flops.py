"""Floating-point operations (FLOPs) of a training step, from the counts of the step."""

from dataclasses import dataclass

import torch

from gm_train.config.parts import load_part
from gm_train.config.schema import Config, ModelConfig
from gm_train.objective.batches import StepInfo
from gm_train.objective.recipe import Objective
from gm_train.plan.flops import Work, as_computed, training_flops


@dataclass(frozen=True)
class StepFlops:
    """Counts what the model needs for a step, by the formula of `gm_train.plan.flops`.

    Attributes:
        model: sizes and variant, as computed on the device; None if the operations are not known: the model is frozen,
            or its mixer is not Mamba-2.
        vocabulary_size: number of tokens.
        learns_label: whether the run learns a label. Its classifier sees one state a cell and is not counted.
        divides_cells: whether the objective divides each cell into parts, which `n_targets` counts.
    """

    model: ModelConfig | None
    vocabulary_size: int
    learns_label: bool
    divides_cells: bool

    @classmethod
    def of_run(cls, config: Config, vocabulary_size: int, device: torch.device) -> "StepFlops":
        """Make the counter of a run.

        Args:
            config: of the run.
            vocabulary_size: number of tokens.
            device: where this rank computes.
        """
        label = config.task.name == "classify"
        known = config.model.arch == "transformer" or config.model.mixer == "mamba2"
        language: Objective = load_part("objective.language", config.objective.language)
        return cls(
            as_computed(config.model, device) if known and not (label and config.task.frozen) else None,
            vocabulary_size,
            label,
            language.divide is not None and not label,
        )

    def of(self, info: StepInfo) -> float | None:
        """Return the operations of a step over all ranks, forward and backward; None if they are not known.

        Attention is counted as if the cells of the step were equally long, which is a little too few.

        Args:
            info: counts over all ranks.
        """
        if self.model is None or not info.n_tokens:
            return None
        parts = info.n_targets if self.divides_cells else info.n_cells
        targets = 0.0 if self.learns_label else info.n_targets / info.n_tokens
        work = Work(info.n_tokens / max(1, parts), targets)
        return info.n_tokens * training_flops(self.model, self.vocabulary_size, work)
