"""Count the parameters of a model without building it."""

from dataclasses import dataclass

import torch

from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters.

    Attributes:
        whole: of the model.
        layer: of a layer, without what all layers share.
    """

    whole: int
    layer: int

    @property
    def root(self) -> int:
        """Parameters outside of the layers: embedding, output layer, final norm, a shared gate."""
        return self.whole - self.layer * self._n_layers

    _n_layers: int = 1


def model_size(model: ModelConfig, vocabulary_size: int) -> ModelSize:
    """Count the parameters of a model and of its parts.

    Args:
        model: sizes and variant.
        vocabulary_size: number of tokens.
    """
    with torch.device("meta"):
        built = GeneMamba(model, vocabulary_size)
    whole, layers = (sum(parameter.numel() for parameter in part.parameters()) for part in (built, built.stack.layers))
    return ModelSize(whole, layers // model.n_layers, model.n_layers)


def n_parameters(model: ModelConfig, vocabulary_size: int) -> int:
    """Count the parameters of a model without allocating them."""
    return model_size(model, vocabulary_size).whole
