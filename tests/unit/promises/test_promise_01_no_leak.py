"""Promise 1: the logits that predict a token do not depend on it; tested through masking and the whole network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_shards.rows.pool import Rows
from data_shards.tokens.vocabulary import MASK
from gm_train.config.check import config_problems
from gm_train.config.parts import ARCHITECTURES, OBJECTIVES, load_part
from gm_train.config.schema import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.cell_keys import cell_keys
from gm_train.objective.masking import mask_tokens
from gm_train.objective.recipe import Recipe
from tests.support.small_models import VARIANTS, VOCABULARY, pack, random_model, seeds, small_config

MASK_RATE, RANDOM_RATE = 0.4, 0.3


def configured(objective: str, arch: str) -> Config:
    """A configuration with an objective and an architecture."""
    config = Config()
    config.objective.language, config.model.arch = objective, arch
    return config


def keys_of(n_cells: int, seed: int) -> np.ndarray:
    return cell_keys(seed, np.arange(n_cells) // 2, np.arange(n_cells) % 2)


def packed_states(model: GeneMamba, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
    """States of all tokens, (n_tokens, d_model), of cells packed in one row."""
    input_ids, segment = pack([list(torch.from_numpy(tokens).split(lengths.tolist()))], tail=2)
    with torch.no_grad():
        return model(input_ids, segment)[segment > 0]


def packed_logits(model: GeneMamba, tokens: np.ndarray, lengths: np.ndarray) -> Tensor:
    """Logits of all tokens, (n_tokens, vocabulary), of cells packed in one row."""
    with torch.no_grad():
        return model.logits(packed_states(model, tokens, lengths))


def masked_leaks(model: GeneMamba, seed: int, masking: Callable[..., Any] = mask_tokens) -> bool:
    """Whether the logits of a masked position change with the gene that is hidden there."""
    generator = np.random.default_rng(seed)
    lengths = np.array([9, 5, 7])
    keys = keys_of(3, seed)
    tokens = generator.integers(2, VOCABULARY, lengths.sum())
    visible, chosen = masking(tokens, lengths, keys, VOCABULARY, MASK_RATE, RANDOM_RATE)
    logits = packed_logits(model, visible, lengths)
    for position in np.flatnonzero(chosen):
        changed = tokens.copy()
        changed[position] = generator.choice(np.setdiff1d(np.arange(2, VOCABULARY), tokens[position]))
        now_visible, now_chosen = masking(changed, lengths, keys, VOCABULARY, MASK_RATE, RANDOM_RATE)
        assert np.array_equal(chosen, now_chosen)
        shown, now_shown = visible[position], now_visible[position]
        if {shown, now_shown} in ({MASK, tokens[position]}, {MASK, changed[position]}) and shown != tokens[position]:
            continue  # the random gene drawn here is one of the two genes, and `<mask>` is shown instead of it
        if not torch.equal(packed_logits(model, now_visible, lengths)[position], logits[position]):
            return True
    return False


def next_token_leaks(model: GeneMamba, seed: int) -> bool:
    """Whether the logits at t - 1, which predict token t, change with token t or a later one."""
    generator = np.random.default_rng(seed)
    lengths = np.array([11])
    tokens = generator.integers(2, VOCABULARY, 11)
    logits = packed_logits(model, tokens, lengths)
    for t in range(1, 11):
        changed = tokens.copy()
        changed[t:] = 2 + (tokens[t:] - 2 + generator.integers(1, VOCABULARY - 2, 11 - t)) % (VOCABULARY - 2)
        if not torch.equal(packed_logits(model, changed, lengths)[t - 1], logits[t - 1]):
            return True
    return False


@pytest.mark.parametrize("norm", ["none", "pre"])
@pytest.mark.parametrize(("arch", "aggregation"), VARIANTS)
def test_masked_logits_do_not_depend_on_the_hidden_gene(arch: str, aggregation: str, norm: str) -> None:
    for seed in range(5):
        model = random_model(small_config(arch=arch, aggregation=aggregation, norm=norm), seed, torch.float32)
        assert not masked_leaks(model, seed)


@pytest.mark.parametrize("norm", ["none", "pre"])
def test_next_token_logits_of_the_unidirectional_model_see_only_the_past(norm: str) -> None:
    for seed in range(5):
        assert not next_token_leaks(random_model(small_config(arch="mamba", norm=norm), seed, torch.float32), seed)


@pytest.mark.parametrize(("arch", "aggregation"), [variant for variant in VARIANTS if variant[0] != "mamba"])
def test_the_leak_of_next_token_on_a_bidirectional_model_is_detected(arch: str, aggregation: str) -> None:
    """As in the published code: the reverse direction has read token t when the state at t - 1 predicts it."""
    assert next_token_leaks(random_model(small_config(arch=arch, aggregation=aggregation), 0, torch.float32), 0)


def test_masking_that_shows_the_hidden_gene_is_detected() -> None:
    def show(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        return arguments[0], mask_tokens(*arguments)[1]

    assert masked_leaks(random_model(small_config(), 0, torch.float32), 0, masking=show)


TRAINABLE = [
    (objective, arch)
    for objective in OBJECTIVES
    for arch in ARCHITECTURES
    if not any("already seen" in problem for problem in config_problems(configured(objective, arch)))
]


@pytest.mark.parametrize(("objective", "arch"), TRAINABLE)
def test_no_objective_shows_what_it_predicts(objective: str, arch: str) -> None:
    """The states that predict do not change with the tokens that they predict, for every objective in the table."""
    config = configured(objective, arch)
    config.objective.mask_rate, config.objective.random_rate = 0.4, 0.0  # a random gene may be the changed one
    recipe = Recipe(config.objective, 0, VOCABULARY, 64, None)
    language = load_part("objective.language", objective)
    model = random_model(small_config(arch=arch), 0, torch.float32)
    lengths = np.array([9, 5, 7])
    tokens = 2 + np.random.default_rng(0).permutation(VOCABULARY - 2)  # every token once, so that targets are found
    if language.divide is not None:
        rows = Rows(tokens.astype(np.uint16), lengths, np.arange(3), np.zeros(3, int), np.zeros(3, bool), np.array([3]))
        parts = language.divide(rows, recipe)
        tokens, lengths, keys = parts.tokens.astype(np.int64), parts.lengths, cell_keys(0, parts.places, parts.cells)
    else:
        keys = keys_of(3, 0)
    shown = language.predict(tokens, lengths, keys, recipe)
    assert len(shown.targets) > 3
    states = packed_states(model, shown.visible, lengths)
    ends = np.cumsum(lengths)
    for i, target in enumerate(shown.targets):
        if language.divide is None:
            positions, of_state = np.flatnonzero(tokens == target), slice(shown.states[i], shown.states[i] + 1)
        else:  # the genes of the other part, from the states of this one
            mine, other = (
                int(np.searchsorted(ends, at, side="right")) for at in (shown.states[i], shown.states[i] + target)
            )
            positions = np.arange(ends[other] - lengths[other], ends[other])
            of_state = slice(ends[mine] - lengths[mine], ends[mine])
        for position in positions:
            changed = tokens.copy()
            changed[position] = 2 + (tokens[position] - 1) % (VOCABULARY - 2)
            now = language.predict(changed, lengths, keys, recipe)
            assert np.array_equal(now.states, shown.states)
            assert torch.equal(packed_states(model, now.visible, lengths)[of_state], states[of_state])


cell_lengths = st.lists(st.integers(0, 30), min_size=1, max_size=6)


@settings(max_examples=100)
@given(
    lengths=cell_lengths, mask_rate=st.floats(0, 1), random_rate=st.floats(0, 1), size=st.integers(3, 30), seed=seeds
)
def test_a_masked_position_never_shows_its_own_gene(
    lengths: list[int], mask_rate: float, random_rate: float, size: int, seed: int
) -> None:
    tokens = np.random.default_rng(seed).integers(2, size, sum(lengths))
    visible, chosen = mask_tokens(tokens, np.array(lengths), keys_of(len(lengths), seed), size, mask_rate, random_rate)
    assert (visible[chosen] != tokens[chosen]).all()
    assert (visible[~chosen] == tokens[~chosen]).all()
    assert ((visible[chosen] == 1) | ((visible[chosen] >= 2) & (visible[chosen] < size))).all()


@settings(max_examples=50)
@given(lengths=cell_lengths, seed=seeds)
def test_masks_do_not_depend_on_how_cells_are_grouped(lengths: list[int], seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(2, VOCABULARY, sum(lengths))
    keys = keys_of(len(lengths), seed)
    together = mask_tokens(tokens, np.array(lengths), keys, VOCABULARY, MASK_RATE, RANDOM_RATE)
    ends = np.cumsum(lengths)
    apart = [
        mask_tokens(tokens[end - n : end], np.array([n]), keys[i : i + 1], VOCABULARY, MASK_RATE, RANDOM_RATE)
        for i, (end, n) in enumerate(zip(ends, lengths, strict=True))
    ]
    assert np.array_equal(together[0], np.concatenate([visible for visible, _ in apart]))
    assert np.array_equal(together[1], np.concatenate([chosen for _, chosen in apart]))
