"""Bad input: one clear message, and no output."""

import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError, OptionError
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import Vocabulary
from gm_train.checkpoint.find import open_checkpoint
from gm_train.cli.main import main
from gm_train.config.schema import Config
from gm_train.embedding import embedded_chunks
from gm_train.embedding.embed import embed
from gm_train.embedding.embed_file import EmbedOptions, embed_file
from gm_train.model.genemamba import GeneMamba
from tests.conftest import Atlas
from tests.support.count_files import draw_counts, write_counts
from tests.support.small_models import small_config

HUMAN = [f"ENSG{i:011d}" for i in range(40)]
MOUSE = [f"ENSMUSG{i:011d}" for i in range(40)]


def refused(run: Path, source: Path, out: Path, message: str, **options: Any) -> None:
    """Check that embedding is refused with the message and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(DataError, match=message):
        embed_file(run, source, out, EmbedOptions(**options), lambda line: None)
    assert sorted(out.parent.iterdir()) == before


@pytest.fixture
def human() -> tuple[GeneMamba, Tokenizer, Config]:
    """A model of human genes."""
    tokenizer = Tokenizer(Vocabulary("ensembl", tuple(HUMAN)), np.ones(40), top_k=20)
    torch.manual_seed(0)
    return GeneMamba(small_config(), tokenizer.vocabulary.size).eval(), tokenizer, Config()


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
def test_an_output_that_exists(run_dir: Path, atlas: Atlas, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    refused(run_dir, atlas.files[0], tmp_path / name, rf"{name}: exists already: remove it or choose another name")


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
def test_an_output_that_something_else_creates_meanwhile(
    run_dir: Path, atlas: Atlas, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / name, embedded_chunks.embed_cells

    def meanwhile(*arguments: Any) -> np.ndarray:
        out.write_text("somebody else's")
        return real(*arguments)

    monkeypatch.setattr(embedded_chunks, "embed_cells", meanwhile)
    with pytest.raises(DataError, match=rf"{name}: was created by something else meanwhile, and stays as it is"):
        embed_file(run_dir, atlas.files[0], out, say=lambda line: None)
    assert out.read_text() == "somebody else's"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_output_of_another_format_or_inside_the_input(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    refused(run_dir, atlas.files[0], tmp_path / "out.loom", r"out\.loom: .* end in \.h5ad or \.zarr")
    zarr = write_counts(tmp_path / "in.zarr", draw_counts(5, 4))
    refused(run_dir, zarr, zarr / "out.zarr", r"out\.zarr: is inside .*in\.zarr, which must not change")


def test_log_values_and_the_ways_out_that_the_message_names(run_dir: Path, rich: ad.AnnData, tmp_path: Path) -> None:
    rich.write_h5ad(tmp_path / "logs.h5ad")
    message = r"logs\.h5ad: cell 0, gene gene0000: .* is not a whole count: .*--layer or --raw.*--counts-from log1p"
    refused(run_dir, tmp_path / "logs.h5ad", tmp_path / "out.h5ad", message)
    for words in (["--layer", "counts"], ["--raw"], ["--counts-from", "log1p"]):
        out = tmp_path / f"{words[0]}.h5ad"
        assert main(["embed", str(run_dir), str(tmp_path / "logs.h5ad"), str(out), *words]) == 0
        assert out.exists()


def test_no_cells(run_dir: Path, tmp_path: Path) -> None:
    none = write_counts(tmp_path / "none.h5ad", draw_counts(4, 6)[:0])
    refused(run_dir, none, tmp_path / "out.h5ad", r"none\.h5ad: X has 0 cells and 6 genes")
    with pytest.raises(DataError, match="AnnData in memory: X has 0 cells"):
        embed(run_dir, ad.read_h5ad(none))


def test_genes_that_hardly_map(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    cells = ad.read_h5ad(atlas.files[1])
    cells.var["right"] = list(cells.var_names)
    cells.var_names = [name if i < 5 else f"other{i}" for i, name in enumerate(cells.var_names)]
    cells.write_h5ad(tmp_path / "in.h5ad")
    message = r"in\.h5ad: only \d of its 80 genes are among the \d+ genes of the model \(as-is ids: .*--gene-column"
    refused(run_dir, tmp_path / "in.h5ad", tmp_path / "out.h5ad", message)
    cells.var_names = [f"other{i}" for i in range(80)]
    cells.write_h5ad(tmp_path / "none.h5ad")
    refused(run_dir, tmp_path / "none.h5ad", tmp_path / "out.h5ad", r"none of its 80 genes .* --gene-column")
    for words in (["--gene-column", "right"], ["--min-mapped", "0.01"]):
        out = tmp_path / f"{words[0]}.zarr"
        assert main(["embed", str(run_dir), str(tmp_path / "in.h5ad"), str(out), *words]) == 0


def test_names_that_are_not_ids(human: Any, tmp_path: Path) -> None:
    path = write_counts(tmp_path / "names.h5ad", draw_counts(6, 40), var={"ids": HUMAN})
    with pytest.raises(DataError, match=r"only 0 of 40 genes .* --gene-column, or lower --min-mapped$"):
        embed(human, path)
    assert embed(human, path, options=CountOptions(gene_column="ids")).shape == (6, 12)


def test_a_query_of_another_species(human: Any, tmp_path: Path) -> None:
    path = write_counts(tmp_path / "mouse.h5ad", draw_counts(6, 40), MOUSE, var={"human": HUMAN})
    message = r"mouse\.h5ad: mouse \(ENSMUSG…\), the vocabulary: human .* a model, of its species, or .*--gene-column"
    with pytest.raises(DataError, match=message):
        embed(human, path)
    with pytest.raises(DataError, match=r"AnnData in memory: mouse"):
        embed(human, ad.read_h5ad(path))
    assert embed(human, path, options=CountOptions(gene_column="human")).shape == (6, 12)


def test_a_checkpoint_without_commit_or_with_damage(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    out = tmp_path / "out" / "x.h5ad"
    out.parent.mkdir()
    broken = shutil.copytree(open_checkpoint(run_dir).path, tmp_path / "step-00000004")
    (broken / "tokenizer" / "medians.npy").write_bytes(b"x")
    refused(broken, atlas.files[0], out, r"step-00000004: tokenizer/medians\.npy has 1 bytes")
    (broken / "COMMIT").unlink()
    refused(
        broken,
        atlas.files[0],
        out,
        r"step-00000004: is a folder, not a checkpoint or a run",
    )
    refused(tmp_path / "nowhere", atlas.files[0], out, r"nowhere: no such checkpoint or run directory")
    with pytest.raises(DataError, match="not a checkpoint or a run directory"):
        embed(broken, atlas.files[0])


def test_an_input_that_is_missing_or_damaged(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    refused(run_dir, tmp_path / "nowhere.h5ad", tmp_path / "out.h5ad", r"nowhere\.h5ad: no such file")
    half = tmp_path / "half.h5ad"
    half.write_bytes(atlas.files[0].read_bytes()[:5000])
    refused(run_dir, half, tmp_path / "out.h5ad", r"half\.h5ad: not an AnnData file, or a truncated one")


def test_an_input_that_changes_meanwhile(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    source = Path(shutil.copy(atlas.files[1], tmp_path / "in.h5ad"))

    from data_shards.files import fingerprint

    of = fingerprint.Fingerprint.of

    def hash_and_change(path: Path) -> fingerprint.Fingerprint:
        done = of(path)
        source.touch()
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint.Fingerprint, "of", staticmethod(hash_and_change))
        refused(run_dir, source, tmp_path / "out.h5ad", r"in\.h5ad: changed while it was read")


def test_old_files_are_copied_in_their_own_format_only(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    import h5py

    source = Path(shutil.copy(atlas.files[1], tmp_path / "old.h5ad"))
    with h5py.File(source, "r+") as file:
        del file.attrs["encoding-type"], file.attrs["encoding-version"]
        del file["obsm"], file["uns"]
    refused(run_dir, source, tmp_path / "out.zarr", r"old\.h5ad: written by an anndata before 0\.8.* end in \.h5ad")
    embed_file(run_dir, source, tmp_path / "out.h5ad", say=lambda line: None)
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.obsm["X_genemamba"], embed(run_dir, atlas.files[1]))
    with h5py.File(source, "r+") as file:
        file["obsm"] = np.zeros(41, dtype=[("X_pca", "f4", (2,))])
    refused(run_dir, source, tmp_path / "again.h5ad", r"old\.h5ad: obsm is stored as before anndata 0\.7")


def test_options_that_contradict(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--genes with --raw"):
        EmbedOptions(genes=True, counts=CountOptions(raw=True))
    words = ["embed", str(run_dir), str(atlas.files[0]), str(tmp_path / "out.h5ad"), "--raw"]
    assert main([*words, "--genes"]) == 2
    assert main([*words, "--layer", "x"]) == 2
    assert list(tmp_path.iterdir()) == []
