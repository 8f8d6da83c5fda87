"""A step of `fit` against the same step written out by hand: losses, gradient, clipping, schedule, AdamW."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data_shards.hashing import fold
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.batches import MicroBatch
from gm_train.objective.pathway import PathwayIndex, pathway_loss_sum, read_gmt
from gm_train.objective.recipe import Recipe
from gm_train.optim import build_optimizer
from gm_train.ranks.ranks import Ranks
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_gene_sets

STEPS = 4


def batches_of(config: Config, tokenizer: Tokenizer) -> list[MicroBatch]:
    sets = read_gmt(Path(config.objective.pathways))
    index = PathwayIndex.build(sets, tokenizer.vocabulary.token_of, tokenizer.vocabulary.size, (5, 200))
    recipe = Recipe(config.objective, config.run.seed, tokenizer.vocabulary.size, config.data.row_length, index)
    data = RankBatches(config.data, recipe, Position.start(config.data.lanes), STEPS, 10, Ranks())
    return list(data.train_batches())


@pytest.mark.parametrize("gamma", [0.1, 0.0])
@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_fit_is_the_loop_written_by_hand(atlas: Atlas, tmp_path: Path, gamma: float, clip: float) -> None:
    words = [
        *tiny_words(atlas.store, tmp_path / "run"), f"objective.pathways={write_gene_sets(tmp_path / 'sets.gmt')}",
        "objective.pathway_size=[5,200]", f"objective.gamma={gamma}", f"optim.clip={clip}",
        f"trainer.max_steps={STEPS}", "optim.weight_decay=0.2",
    ]  # fmt: skip
    config = load_config(*words)
    fit(config)
    rows = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]

    # Here the whole step is one batch with all rows and one backward pass, written as formulas.
    tokenizer = Tokenizer.load(atlas.store)
    torch.manual_seed(fold(config.run.seed) >> 1)
    model = GeneMamba(config.model, tokenizer.vocabulary.size)
    optimizer = build_optimizer(model, config.optim)
    batches = batches_of(config, tokenizer)
    for step in range(STEPS):
        first, second = batches[2 * step : 2 * step + 2]
        size = first.input_ids.numel()
        states = model(
            torch.cat([first.input_ids, second.input_ids]), torch.cat([first.segment, second.segment])
        ).flatten(0, 1)
        l_lang = F.cross_entropy(
            model.logits(states[torch.cat([first.target_at, second.target_at + size])]),
            torch.cat([first.targets, second.targets]),
        )
        drawn = torch.cat([first.drawn, torch.where(second.drawn >= 0, second.drawn + size, -1)])
        positive = torch.cat([first.positive, second.positive])
        l_pathway = pathway_loss_sum(states, drawn, positive, 0.1) / positive.sum()
        loss = l_lang + gamma * l_pathway
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, clip / (norm.item() + 1e-6))
        lr = config.optim.lr * (step + 1) / config.optim.warmup_steps
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        row = rows[step]
        assert row["l_lang"] == pytest.approx(l_lang.item(), abs=2e-5)
        if gamma:
            assert row["l_pathway"] == pytest.approx(l_pathway.item(), abs=2e-5)
            assert row["l_pathway"] > 0.1
        assert row["loss"] == pytest.approx(loss.item(), abs=2e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert row["lr"] == pytest.approx(lr)
    trained = load_model(open_checkpoint(tmp_path / "run"))[0].state_dict()
    for name, value in model.state_dict().items():
        # Adam divides by gradients. Where a gradient is rounding error, so is the quotient: at most lr at each step.
        assert torch.allclose(trained[name], value, atol=2e-4), name


def test_bf16_trains_with_a_pathway_loss_in_fp32(atlas: Atlas, tmp_path: Path) -> None:
    states = torch.randn(50, 16)
    drawn = torch.arange(50).reshape(5, 10)
    positive = torch.rand(5, 10, 10) < 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pathway_loss_sum(states.bfloat16(), drawn, positive, 0.1)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, pathway_loss_sum(states.bfloat16(), drawn, positive, 0.1))
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "trainer.precision=bf16", "trainer.max_steps=3"))
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert len(losses) == 3
    assert all(loss is not None for loss in losses)
