"""`data.micro_rows=null`: the rows of a forward pass, chosen by settings and the number of ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.config.check import rank_problems
from gm_train.config.load import load_config
from gm_train.config.micro_rows import FEW_TOKENS, MOST_TOKENS, choose_micro_rows, data_of_ranks, few_tokens
from gm_train.config.schema import Config, DataConfig


@pytest.mark.parametrize(
    ("words", "ranks", "rows"),
    [
        (["configs/genemamba-66m.yaml"], 1, 24),
        (["configs/genemamba-66m.yaml"], 8, 24),
        (["configs/genemamba-66m.yaml"], 64, 3),
        (["configs/genemamba-66m-4096.yaml"], 8, 12),
        (["configs/genemamba-66m.yaml", "trainer.precision=fp32"], 8, 12),
        (["configs/genemamba-66m.yaml", "model.n_layers=48"], 8, 12),
        (["configs/genemamba-66m.yaml", "model.n_layers=48", "trainer.activation_checkpointing=true"], 8, 24),
        (["configs/genemamba-66m.yaml", "data.micro_rows=2"], 8, 2),
        (["configs/demo.yaml"], 1, 4),
        (["configs/demo.yaml"], 2, 2),
    ],
)
def test_what_the_presets_get(words: list[str], ranks: int, rows: int) -> None:
    config = load_config(*words, "data.rows_per_lane=1")
    assert choose_micro_rows(config, ranks) == rows == data_of_ranks(config, ranks).micro_rows


@given(st.integers(1, 48), st.integers(1, 9), st.integers(1, 20), st.sampled_from([64, 2048, 100_000]))
def test_the_choice_always_fits_the_ranks(ranks: int, per_rank: int, per_lane: int, length: int) -> None:
    data = DataConfig(lanes=ranks * per_rank, rows_per_lane=per_lane, row_length=length)
    config = Config(data=data)
    chosen = choose_micro_rows(config, ranks)
    data.micro_rows = chosen
    assert not rank_problems(config, ranks)
    assert chosen == 1 or chosen * length <= MOST_TOKENS
    # The next larger divisor would be too large.
    rows = per_rank * per_lane
    larger = [number for number in range(chosen + 1, rows + 1) if rows % number == 0]
    assert not larger or larger[0] * length > MOST_TOKENS // 2


def test_the_advice_against_small_forward_passes_works() -> None:
    config = load_config("configs/genemamba-66m.yaml", "data.rows_per_lane=1")
    assert few_tokens(config, 8) is None
    config.data.micro_rows = 3
    text = few_tokens(config, 8)
    assert text is not None
    assert "data.micro_rows=24" in text
    config.data.micro_rows = None
    text = few_tokens(config, 64)
    assert text is not None
    config.data.rows_per_lane = int(text.split("data.rows_per_lane=")[1].split(",")[0])
    assert few_tokens(config, 64) is None
    assert choose_micro_rows(config, 64) * config.data.row_length >= FEW_TOKENS
