"""`data.rows_per_lane=null`: the rows of a step from each lane, chosen once, so that each rank has enough to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.config.check import ConfigError, rank_problems
from gm_train.config.load import load_config
from gm_train.config.micro_rows import FEW_TOKENS, MOST_TOKENS, choose_micro_rows, few_tokens
from gm_train.config.rows_per_lane import about_step, choose_rows_per_lane, with_rows_per_lane
from gm_train.config.schema import Config, DataConfig

PRESET = "configs/genemamba-66m.yaml"
LONG = "configs/genemamba-66m-4096.yaml"


@pytest.mark.parametrize(
    ("words", "ranks", "per_lane", "micro_rows"),
    [
        ([PRESET], 1, 1, 24),
        ([PRESET], 8, 1, 24),
        ([PRESET], 16, 2, 24),
        ([PRESET], 64, 6, 18),
        ([PRESET, "trainer.precision=fp32"], 64, 4, 12),
        ([PRESET, "data.micro_rows=12"], 64, 4, 12),
        ([PRESET, "data.micro_rows=3"], 64, 1, 3),
        ([PRESET, "data.rows_per_lane=1"], 64, 1, 3),
        ([LONG], 8, 1, 12),
        ([LONG], 96, 8, 8),
        (["configs/demo.yaml"], 4, 1, 1),
    ],
)
def test_what_the_presets_get(words: list[str], ranks: int, per_lane: int, micro_rows: int) -> None:
    config = load_config(*words)
    chosen = with_rows_per_lane(config, choose_rows_per_lane(config, ranks))
    assert chosen.data.rows_per_lane == per_lane
    assert choose_micro_rows(chosen, ranks) == micro_rows


@pytest.mark.parametrize("preset", [PRESET, LONG])
def test_presets_keep_every_number_of_gpus_busy(preset: str) -> None:
    config = load_config(preset)
    for ranks in (number for number in range(1, config.data.lanes + 1) if config.data.lanes % number == 0):
        chosen = with_rows_per_lane(config, choose_rows_per_lane(config, ranks))
        assert few_tokens(chosen, ranks) is None
        assert FEW_TOKENS <= choose_micro_rows(chosen, ranks) * config.data.row_length <= MOST_TOKENS


@given(st.integers(1, 48), st.integers(1, 9), st.sampled_from([None, 1, 5, 12]), st.sampled_from([64, 2048, 100_000]))
def test_a_choice_always_divides_among_its_ranks(ranks: int, lanes: int, micro_rows: int | None, length: int) -> None:
    data = DataConfig(lanes=ranks * lanes, rows_per_lane=None, micro_rows=micro_rows, row_length=length)
    config = Config(data=data)
    assert not rank_problems(config, ranks)
    chosen = with_rows_per_lane(config, choose_rows_per_lane(config, ranks))
    assert not rank_problems(chosen, ranks)
    assert chosen.data.step_rows == data.lanes * chosen.data.fixed_rows_per_lane
    if micro_rows is None:
        # No rank has too little for one large forward pass, nor more than twice that for want of lanes.
        wanted = min(-(-FEW_TOKENS // length), max(1, MOST_TOKENS // 2 // length))  # half in fp32, the default
        rows = chosen.data.step_rows // ranks
        assert rows >= wanted
        assert chosen.data.rows_per_lane == 1 or rows < 2 * (wanted + lanes)


def test_the_choice_is_said_with_what_it_leaves_to_the_user() -> None:
    config = with_rows_per_lane(load_config(PRESET), 6)
    text = about_step(config, 64)
    assert "data.rows_per_lane=6, chosen for 64 ranks and kept by this run" in text
    assert "1,152 rows" in text
    assert "36,864 tokens" in text
    assert "optim.lr, optim.warmup_steps and trainer.max_steps are as configured" in text
    assert "optim.lr" not in about_step(with_rows_per_lane(config, 1), 8)


def test_a_number_that_is_not_fixed_yet_is_never_computed_with() -> None:
    with pytest.raises(AssertionError, match="fixed at the first start"):
        choose_micro_rows(load_config(PRESET), 8)


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"data\.rows_per_lane=0: must be greater than 0"):
        load_config(PRESET, "data.rows_per_lane=0")
    with pytest.raises(ConfigError, match=r"data\.rows_per_lane"):
        load_config(PRESET, "data.rows_per_lane=many")
