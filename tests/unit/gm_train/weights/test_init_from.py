"""`model.init_from`: a new run begins with the weights of a checkpoint, gene by gene."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.model.genemamba import GeneMamba
from gm_train.train.fit import fit
from gm_train.weights.init_from import initial_weights
from tests.conftest import Atlas, tiny_words, write_cells

#: The learning rate of steps that round to no change of any weight.
STILL = ["optim.lr=1e-30", "optim.weight_decay=0"]


@pytest.fixture(scope="module")
def first(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    run = tmp_path_factory.mktemp("first") / "run"
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=8"))
    return run


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with more genes than that of `atlas`."""
    folder = tmp_path_factory.mktemp("larger")
    files = [write_cells(folder / "more.h5ad", 160, 95, seed=5)]
    make_medians(files, folder / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    make_store(files, folder / "medians.zarr", folder / "store.zarr", top_k=48, splits=splits, say=lambda line: None)
    return folder / "store.zarr"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(open_checkpoint(path))[0].state_dict())


def start(store: Path, run: Path, source: Path, *words: str) -> dict[str, torch.Tensor]:
    fit(load_config(*tiny_words(store, run), "trainer.max_steps=2", f"model.init_from={source}", *STILL, *words))
    return weights(run)


def test_a_run_begins_with_the_weights(
    atlas: Atlas, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = start(atlas.store, tmp_path / "run", first)
    expected = weights(first)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    newest = open_checkpoint(first).path
    assert f"initial weights: {newest}, step 8; it knows" in capsys.readouterr().out
    checkpoint = open_checkpoint(tmp_path / "run")
    identity = json.loads((checkpoint.path / "identity.json").read_text())
    assert identity["init_from"] == {"weights": hash_weights(expected), "new_genes": 0}
    assert "model.init_from" not in identity
    # It is a new run: nothing but the weights is taken over.
    assert checkpoint.step == 2


def test_imported_weights_are_begun_with(atlas: Atlas, first: Path, tmp_path: Path) -> None:
    assert main(["export", str(first), str(tmp_path / "out")]) == 0
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "weights")]) == 0
    found = start(atlas.store, tmp_path / "run", tmp_path / "weights")
    assert hash_weights(found) == hash_weights(weights(first))


@pytest.mark.parametrize("tied", [False, True])
def test_new_genes_begin_at_the_mean(
    atlas: Atlas, larger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool
) -> None:
    words = [f"model.tie_output={str(tied).lower()}"]
    old_run = tmp_path / "old"
    fit(load_config(*tiny_words(atlas.store, old_run), "trainer.max_steps=8", *words))
    old, old_tokenizer, _ = load_model(open_checkpoint(old_run))
    found = start(larger, tmp_path / "run", old_run, *words)
    tokenizer = Tokenizer.load(larger)
    genes, known = set(tokenizer.vocabulary.genes), set(old_tokenizer.vocabulary.genes)
    assert genes - known
    assert known - genes
    printed = capsys.readouterr().out
    assert f"it knows {len(genes & known):,} of {len(genes):,} genes" in printed
    assert f"{len(genes - known):,} new ones begin at the mean embedding" in printed
    assert f"{len(known - genes):,} of its genes are not in this vocabulary" in printed
    before = old.state_dict()
    rows = [name for name in ("embedding.weight", "output.weight", "output.bias") if name in before]
    assert len(rows) == (2 if tied else 3)
    for name in rows:
        mean = before[name][FIRST_GENE:].double().mean(0).float()
        assert torch.equal(found[name][:FIRST_GENE], before[name][:FIRST_GENE])
        for gene, token in tokenizer.vocabulary.token_of.items():
            expected = before[name][old_tokenizer.vocabulary.token_of[gene]] if gene in known else mean
            assert torch.equal(found[name][token], expected)
    assert all(torch.equal(found[name], before[name]) for name in before if name not in rows)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{len(genes - known):,} genes were new to them and began at the mean embedding" in card
    assert hash_weights(before) in card


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model.d_model=48", "model.d_state=4"], ["model.d_model: 32 in the checkpoint, 48", "model.d_state: 8"]),
        (["model.aggregation=mean"], ["model.aggregation: 'gate' in the checkpoint, 'mean' in this run"]),
        (["model.arch=transformer"], ["model.arch: 'bimamba' in the checkpoint, 'transformer'"]),
        (["model.norm=none"], ["model.norm: 'pre'"]),
    ],
)
def test_another_model_is_refused(
    atlas: Atlas, first: Path, tmp_path: Path, words: list[str], named: list[str]
) -> None:
    with pytest.raises(DataError) as refused:
        start(atlas.store, tmp_path / "run", first, *words)
    lines = str(refused.value).splitlines()
    assert all(text in line for text, line in zip(named, lines[1:], strict=False))
    assert len(lines) == len(named) + 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_settings_that_do_not_concern_the_weights_may_differ(atlas: Atlas, first: Path, tmp_path: Path) -> None:
    start(atlas.store, tmp_path / "run", first, "model.chunk=16", "objective.mask_rate=0.3", "run.seed=4")


def test_a_vocabulary_without_common_genes_is_refused(atlas: Atlas, first: Path) -> None:
    config = load_config(*tiny_words(atlas.store, Path("unused")), f"model.init_from={first}")
    own = Tokenizer.load(atlas.store)
    genes = tuple(f"ENSG{number:011d}" for number in range(len(own.vocabulary.genes)))
    other = Tokenizer(type(own.vocabulary)("ensembl", genes), own.medians)
    with pytest.raises(DataError, match="knows none of this run's"):
        initial_weights(config, other, None)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("no/such/run", "no such checkpoint or run directory"), ("https://example.org/run", "must be a local checkpoint")],
)
def test_what_is_no_checkpoint_is_refused(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    code = main(["fit", *tiny_words(atlas.store, tmp_path / "run"), f"model.init_from={setting}"])
    assert code == (2 if "://" in setting else 1)
    assert message in capsys.readouterr().err


def test_a_run_resumes_without_its_first_weights_and_refuses_others(atlas: Atlas, first: Path, tmp_path: Path) -> None:
    source = shutil.copytree(first, tmp_path / "source")
    words: list[Any] = [*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=3"]
    init = [f"model.init_from={source}"]
    fit(load_config(*words, *init))
    straight = [*tiny_words(atlas.store, tmp_path / "straight"), *init, "trainer.max_steps=6"]
    fit(load_config(*straight))
    with pytest.raises(DataError, match=r"init_from: .* in the checkpoint, None now"):
        fit(load_config(*words, "trainer.max_steps=6"))
    other = tmp_path / "other"
    fit(load_config(*tiny_words(atlas.store, other), "trainer.max_steps=2"))
    with pytest.raises(DataError, match="init_from: "):
        fit(load_config(*words, f"model.init_from={other}", "trainer.max_steps=6"))
    # The same weights elsewhere are the same weights.
    elsewhere = tmp_path / "elsewhere"
    source.rename(elsewhere)
    fit(load_config(*words, f"model.init_from={elsewhere}", "trainer.max_steps=5"))
    shutil.rmtree(elsewhere)
    fit(load_config(*words, f"model.init_from={elsewhere}", "trainer.max_steps=6"))
    assert hash_weights(weights(tmp_path / "run")) == hash_weights(weights(tmp_path / "straight"))


def test_a_run_directory_is_recorded_as_the_checkpoint_that_was_taken(
    atlas: Atlas, first: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(first, tmp_path / "source")
    words = [*tiny_words(atlas.store, tmp_path / "run"), f"model.init_from={source}"]
    fit(load_config(*words, "trainer.max_steps=2"))
    # The source goes on and has a newer checkpoint; this run still belongs to the older one.
    fit(load_config(*tiny_words(atlas.store, source), "trainer.max_steps=12"))
    fit(load_config(*words, "trainer.max_steps=4"))
    checkpoint = open_checkpoint(tmp_path / "run")
    model: GeneMamba = load_model(checkpoint)[0]
    assert checkpoint.step == 4
    assert f"init_from: {source}/checkpoints/step-00000008" in (checkpoint.path / "config.yaml").read_text()
    assert model.training is False
