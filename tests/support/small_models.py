"""Small models and packed rows for the tests of the model."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gm_train.config import parts
from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba

VOCABULARY = 23
AGGREGATIONS = tuple(parts.AGGREGATIONS)
#: Every architecture, and Bi-Mamba with every aggregation.
VARIANTS = [
    *(("bimamba", aggregation) for aggregation in AGGREGATIONS),
    *((arch, "gate") for arch in parts.ARCHITECTURES if arch != "bimamba"),
]


def small_config(**changes: Any) -> ModelConfig:
    """Two layers, three heads, and sizes that all differ."""
    sizes: dict[str, Any] = {
        "d_model": 12,
        "n_layers": 2,
        "d_state": 5,
        "head_dim": 8,
        "chunk": 4,
        "n_heads": 3,
        "d_ff": 14,
    }
    return ModelConfig(**(sizes | changes))


def random_model(
    config: ModelConfig, seed: int, dtype: torch.dtype = torch.float64, vocabulary_size: int = VOCABULARY
) -> GeneMamba:
    """Make a model with noise on all parameters, since some initial values are ones or zeros.

    Args:
        config: of the model.
        seed: of parameters and noise.
        dtype: of the parameters.
        vocabulary_size: number of tokens.
    """
    torch.manual_seed(seed)
    model = GeneMamba(config, vocabulary_size).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_cells(lengths: list[int], seed: int) -> list[Tensor]:
    """Draw cells of random genes: int64 (length,) each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator) for length in lengths]


def pack(rows: list[list[Tensor]], tail: int) -> tuple[Tensor, Tensor]:
    """Pack rows of cells, with at least `tail` unused tokens at the end of each row.

    Returns:
        input_ids and segment (1, 2, … for the cells of a row, 0 for unused), int64 (rows, length) each.
    """
    length = max(sum(map(len, row)) for row in rows) + tail
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    segment = torch.zeros(len(rows), length, dtype=torch.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, cell in enumerate(row, start=1):
            input_ids[r, start : start + len(cell)] = cell
            segment[r, start : start + len(cell)] = number
            start += len(cell)
    return input_ids, segment


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest deviation divided by the largest expected magnitude."""
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


configs = st.builds(
    small_config,
    arch=st.sampled_from(["bimamba", "bimamba", *parts.ARCHITECTURES]),
    mixer=st.sampled_from([*parts.MIXERS]),
    aggregation=st.sampled_from(AGGREGATIONS),
    gate_per_layer=st.booleans(),
    norm=st.sampled_from(["none", "pre"]),
    tie_output=st.booleans(),
    chunk=st.sampled_from([1, 3, 4, 16]),
    d_conv=st.sampled_from([1, 2, 4]),
).filter(lambda config: config.mixer == "mamba2" or config.aggregation != "head_gate")
packed_lengths = st.lists(st.lists(st.integers(1, 11), min_size=1, max_size=3), min_size=1, max_size=2)
seeds = st.integers(0, 2**31)
