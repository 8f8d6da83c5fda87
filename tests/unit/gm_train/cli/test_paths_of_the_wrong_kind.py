"""A path of the wrong kind is named for what it is, with a way out; nobody has to read an `[Errno 20]`."""

import shutil
from pathlib import Path

import anndata as ad
import pytest

from data_shards.files import kinds
from data_shards.files.kinds import is_other, kind_of
from data_shards.store.manifest import DEMO_STORE
from gm_train.cli.main import main
from gm_train.config.load import load_config
from tests.conftest import Atlas, tiny_words, write_gene_sets

STORE, MEDIANS, COUNTS, GENE_SETS = kinds.STORE, kinds.MEDIANS, kinds.COUNTS, kinds.GENE_SETS
RANK = "rank its cells with `gm-train data shards`"


@pytest.fixture(scope="module")
def paths(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One path of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    counts = ad.read_h5ad(atlas.files[1])
    counts.write_zarr(folder / "cells.zarr")
    run = folder / "run"
    checkpoint = run / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "plain").mkdir()
    (folder / "plain" / "notes.txt").write_text("notes\n")
    return {
        "store": atlas.store,
        "medians": atlas.store.parent / "medians.zarr",
        "h5ad": atlas.files[0],
        "anndata-zarr": folder / "cells.zarr",
        "gmt": write_gene_sets(folder / "sets.gmt"),
        "run": run,
        "checkpoint": checkpoint,
        "empty": folder / "empty",
        "folder": folder / "plain",
        "text": folder / "plain" / "notes.txt",
        "missing": folder / "missing",
    }


def test_each_kind_is_recognised(paths: dict[str, Path], tmp_path: Path) -> None:
    assert {name: kind_of(path) for name, path in paths.items()} == {
        "store": STORE,
        "medians": MEDIANS,
        "h5ad": COUNTS,
        "anndata-zarr": COUNTS,
        "gmt": GENE_SETS,
        "run": kinds.RUN,
        "checkpoint": kinds.CHECKPOINT,
        "empty": "an empty folder",
        "folder": "a folder",
        "text": "a file",
        "missing": None,
    }
    assert is_other(paths["store"], STORE) is None
    # A damaged store is not called something else.
    damaged = Path(shutil.copytree(paths["store"], tmp_path / "damaged.zarr"))
    (damaged / "zarr.json").write_text("{")
    assert kind_of(damaged) is None


# The option with {} for the path, the kind of path, and what the message must say.
TRIALS = [
    ("fit data.store={} run.dir=RUN", "h5ad", f"is {COUNTS}, not {STORE}: {RANK}"),
    ("fit data.store={} run.dir=RUN", "anndata-zarr", f"is {COUNTS}, not {STORE}: {RANK}"),
    ("fit data.store={} run.dir=RUN", "medians", f"is {MEDIANS}, not {STORE}: give the store that"),
    (
        "fit data.store={} run.dir=RUN",
        "checkpoint",
        "is a checkpoint, not a token store: data.store in its config.yaml",
    ),
    ("fit data.store={} run.dir=RUN", "run", "is a run directory, not a token store: data.store in its config.yaml"),
    ("fit data.store={} run.dir=RUN", "gmt", f"is {GENE_SETS}, not {STORE}"),
    ("fit data.store={} run.dir=RUN", "empty", "is an empty folder, not a token store"),
    ("fit data.store={} run.dir=RUN", "missing", "no such store: make it with `gm-train data shards`"),
    ("fit data.store=STORE run.dir={}", "store", "run.dir={}: is a token store: choose another folder"),
    ("fit data.store=STORE run.dir={}", "h5ad", "run.dir={}: is a file of counts: choose another folder"),
    ("fit data.store=STORE run.dir=RUN objective.pathways={}", "folder", f"is a folder, not {GENE_SETS}"),
    ("fit data.store=STORE run.dir=RUN objective.pathways={}", "h5ad", f"is {COUNTS}, not {GENE_SETS}"),
    ("fit data.store=STORE run.dir=RUN objective.pathways={}", "missing", "no such file: set objective.pathways"),
    ("fit {}", "store", "it is a token store: write data.store={}"),
    ("fit {}", "run", "it is a run directory: write {}/config.yaml"),
    ("fit {}", "checkpoint", "it is a checkpoint: write {}/config.yaml"),
    ("fit {}", "gmt", "it is a file of gene sets: write objective.pathways={}"),
    ("fit {}", "h5ad", f"it is {COUNTS}: {RANK}"),
    ("data shards H5AD --out OUT --medians {}", "anndata-zarr", f"is {COUNTS}, not {MEDIANS}"),
    ("data shards H5AD --out OUT --medians {}", "store", f"is {STORE}, not {MEDIANS}"),
    ("data shards H5AD --out OUT --medians {}", "h5ad", f"is {COUNTS}, not {MEDIANS}"),
    ("data shards H5AD --out OUT --medians {}", "run", f"is a run directory, not {MEDIANS}"),
    ("data shards H5AD --out OUT --medians MEDIANS --genes {}", "folder", "is a folder, not a file: give a text file"),
    ("data shards H5AD --out OUT --medians MEDIANS --genes {}", "h5ad", f"is {COUNTS}, not a list of genes"),
    ("data shards {} --out OUT --medians MEDIANS", "store", f"is {STORE}, not {COUNTS}: give the AnnData files"),
    ("data medians {} --out OUT", "medians", f"is {MEDIANS}, not {COUNTS}: give the AnnData files"),
    ("data medians {} --out OUT", "checkpoint", "is a checkpoint, but not an AnnData-Zarr"),
    ("data medians {} --out OUT", "gmt", f"is {GENE_SETS}, not {COUNTS}"),
    ("data medians H5AD --out OUT --gene-table {}", "h5ad", f"is {COUNTS}, not a gene table"),
    ("data medians H5AD --out OUT --gene-table {}", "missing", "no such file: expected CSV"),
    ("data import H5AD --out OUT --medians X --tokens {}", "medians", f"is {MEDIANS}, not a dictionary"),
    ("data inspect {}", "h5ad", f"is {COUNTS}, not {STORE}: {RANK}"),
    ("data verify {}", "run", f"is a run directory, not {STORE}"),
    ("data verify {}", "text", f"is a file, not {STORE}"),
    ("eval {} H5AD", "h5ad", f"is {COUNTS}, not a checkpoint or a run directory"),
    ("eval {} H5AD", "store", f"is {STORE}, not a checkpoint or a run directory"),
    ("eval {} H5AD", "missing", "no such checkpoint or run directory"),
    ("ckpt list {}", "h5ad", f"is {COUNTS}, not a checkpoint or a run directory"),
    ("ckpt verify {}", "medians", f"is {MEDIANS}, not a checkpoint or a run directory"),
    ("ckpt reshard {}", "store", f"is {STORE}, not a checkpoint or a run directory"),
]


@pytest.mark.parametrize(("command", "kind", "message"), TRIALS, ids=[f"{c} {k}" for c, k, _ in TRIALS])
def test_a_path_of_the_wrong_kind_is_named_for_what_it_is(
    command: str, kind: str, message: str, paths: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(paths[kind])
    tiny = [word for word in tiny_words(paths["store"], tmp_path) if not word.startswith(("data.store", "run."))]
    names = {"STORE": paths["store"], "H5AD": paths["h5ad"], "MEDIANS": paths["medians"]}
    names |= {"RUN": tmp_path / "a-run", "OUT": tmp_path / "out.zarr"}
    words = []
    for word in command.split():
        key, equals, value = word.rpartition("=")
        words.append(f"{key}{equals}{names.get(value, value)}".replace("{}", path))
    before = sorted(tmp_path.iterdir())
    assert main([*words, *(tiny if len(words) > 2 and words[0] == "fit" else [])]) in (1, 2)
    error = capsys.readouterr().err
    assert message.replace("{}", path) in error
    assert path in error
    assert "Errno" not in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_the_demo_without_its_store_names_make_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path("configs/demo.yaml").absolute()
    assert load_config(str(config)).data.store.endswith(DEMO_STORE)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", str(config)]) == 1
    assert "runs/demo-data/store.zarr: no such store: `make demo` makes it" in capsys.readouterr().err
