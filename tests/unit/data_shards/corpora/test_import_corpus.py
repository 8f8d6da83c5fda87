"""`gm-train data import`: round trip against `data shards`, bad input, and use of the store like any other."""

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import zarr

from data_shards.corpora import import_corpus as import_corpus_module
from data_shards.corpora.import_corpus import import_corpus
from data_shards.counts.gene_ids import GeneTable
from data_shards.errors import DataError
from data_shards.inspect.store_summary import StoreSummary
from data_shards.inspect.verify import find_damage
from data_shards.medians.make_medians import make_medians
from data_shards.medians.medians_file import Medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from data_shards.store.writer import DatasetWriter
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.cli.main import main
from tests.conftest import tiny_words, write_cells
from tests.support.counts_to_stores import contents
from tests.support.ranked_corpora import SPECIALS, save_to_disk, table_of, write_arrow, write_parquet


def quiet(line: str) -> None:
    pass


def arrays(store: Path, name: str) -> dict[str, Any]:
    group: Any = zarr.open_group(store, mode="r")[name]
    return {array: np.asarray(group[array][:]) for array in ("tokens", "indptr", "split")}


class Foreign:
    """A store in the layout of a corpus from elsewhere, where genes have other numbers, in no order.

    Attributes:
        cells: foreign tokens of each cell, between specials.
        tokens, medians: paths of the dictionaries.
        obs: annotations of the cells.
    """

    def __init__(self, folder: Path, store: Path, name: str, medians: Path, pickled: bool) -> None:
        folder.mkdir()
        own, genes = arrays(store, name), Tokenizer.load(store).vocabulary.genes
        # The foreign dictionary has two more genes, which have no median.
        names = [*(f"{gene}.{i % 20}" if gene.startswith("ENSG") else gene for i, gene in enumerate(genes)), "x1", "x2"]
        numbers = np.random.default_rng(0).permutation(len(names)) + len(SPECIALS)
        foreign = dict(SPECIALS) | {name: int(number) for name, number in zip(names, numbers, strict=True)}
        of_gene = numbers[own["tokens"].astype(int) - FIRST_GENE]
        self.cells = [
            [SPECIALS["<cls>"], *of_gene[a:b].tolist(), SPECIALS["<eos>"], SPECIALS["<pad>"], SPECIALS["<pad>"]]
            for a, b in pairwise(own["indptr"])
        ]
        found = Medians.load(medians)
        of_name = {
            name: median for name, median, n in zip(found.genes, found.medians.tolist(), found.counts, strict=True) if n
        }
        self.tokens, self.medians = (
            folder / f"{what}.{'pkl' if pickled else 'json'}" for what in ("tokens", "medians")
        )
        for path, content in ((self.tokens, foreign), (self.medians, of_name)):
            path.write_bytes(pickle.dumps(content) if pickled else json.dumps(content).encode())
        self.obs = pd.read_parquet(store / name / "obs.parquet").drop(columns=["source_row"])

    def tables(self, n: int) -> list[pa.Table]:
        columns = pa.Table.from_pandas(self.obs, preserve_index=False)
        table = table_of(self.cells, **{name: columns[name] for name in columns.column_names})
        step = -(-len(table) // n)
        return [table.slice(i * step, step) for i in range(n)]


@pytest.fixture(scope="session")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with medians `m.zarr` and store `s.zarr` of real cells."""
    folder = tmp_path_factory.mktemp("real")
    files = [real_data / "scp1884_gut_1020.h5ad"]
    table = GeneTable.read_csv(real_data / "genes_homo_sapiens.csv.gz")
    make_medians(files, folder / "m.zarr", gene_table=table, say=quiet)
    make_store(files, folder / "m.zarr", folder / "s.zarr", top_k=512, say=quiet)
    return folder


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_real_cells_come_back_as_they_were_ranked(real: Path, tmp_path: Path, layout: str) -> None:
    foreign = Foreign(tmp_path / "foreign", real / "s.zarr", "scp1884_gut_1020", real / "m.zarr", layout == "arrow")
    write = save_to_disk if layout == "arrow" else write_parquet
    folder = write(tmp_path / "gut.dataset", foreign.tables(3))
    lines: list[str] = []
    out = tmp_path / "s.zarr"
    manifest = import_corpus([folder], foreign.tokens, foreign.medians, out, top_k=512, say=lines.append)
    expected = Manifest.load(real / "s.zarr")
    assert (manifest.vocabulary_hash, manifest.medians_hash) == (expected.vocabulary_hash, expected.medians_hash)
    own, found = arrays(real / "s.zarr", "scp1884_gut_1020"), arrays(out, "gut")
    for name in own:
        np.testing.assert_array_equal(found[name], own[name])
        assert found[name].dtype == own[name].dtype
    assert manifest.block_cells == expected.block_cells
    obs, before = (
        pd.read_parquet(path) for path in (out / "gut/obs.parquet", real / "s.zarr/scp1884_gut_1020/obs.parquet")
    )
    pd.testing.assert_frame_equal(obs[before.columns.tolist()], before, check_dtype=False, check_categorical=False)
    (entry,) = manifest.datasets
    assert entry.imported is not None
    assert [file["file"] for file in entry.imported["files"]] == sorted(
        path.name for path in folder.iterdir() if path.suffix in (".arrow", ".parquet")
    )
    assert entry.imported["tokens"]["file"] == foreign.tokens.name
    assert find_damage(out) == []
    text = "\n".join(StoreSummary.read(out).describe())
    assert "3 files, ranked already): 1,020 cells, 0 without a token" in text
    assert f"tokens of {foreign.tokens.name}, medians of {foreign.medians.name}" in text
    assert any("<pad>, <mask>, <cls>, <eos> dropped" in line for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of simulated cells: medians `m.zarr`, store `s.zarr` of both."""
    folder = tmp_path_factory.mktemp("small")
    files = [write_cells(folder / "one.h5ad", 90, 60, seed=1), write_cells(folder / "two.h5ad", 40, 60, seed=2)]
    make_medians(files, folder / "m.zarr", say=quiet)
    make_store(files, folder / "m.zarr", folder / "s.zarr", top_k=48, say=quiet)
    make_store(files[:1], folder / "m.zarr", folder / "one.zarr", top_k=48, say=quiet)
    return folder


@pytest.fixture
def foreign(folder: Path, tmp_path: Path) -> Foreign:
    return Foreign(tmp_path / "foreign", folder / "s.zarr", "two", folder / "m.zarr", False)


def build(tmp_path: Path, foreign: Foreign, cells: Any = None, **options: Any) -> Manifest:
    table = foreign.tables(1)[0] if cells is None else table_of(cells)
    path = write_arrow(tmp_path / "two.arrow", table)
    return import_corpus(
        [path], foreign.tokens, foreign.medians, tmp_path / "s.zarr", **{"say": quiet, "top_k": 48, **options}
    )


def test_added_to_a_store_it_is_what_shards_would_have_added(folder: Path, foreign: Foreign, tmp_path: Path) -> None:
    store = shutil.copytree(folder / "one.zarr", tmp_path / "s.zarr")
    manifest = build(tmp_path, foreign, add=True, top_k=None)
    make_store(
        [folder / "two.h5ad"], None, shutil.copytree(folder / "one.zarr", tmp_path / "t.zarr"), add=True, say=quiet
    )
    expected = Manifest.load(tmp_path / "t.zarr")
    assert manifest.hash == expected.hash
    assert [entry.content_hash for entry in manifest.datasets] == [entry.content_hash for entry in expected.datasets]
    assert find_damage(store) == []
    with pytest.raises(DataError, match=r"s\.zarr: has a data set 'two' already"):
        build(tmp_path, foreign, add=True, top_k=None)
    assert Manifest.load(store).hash == manifest.hash


def test_added_only_with_the_medians_of_the_store(folder: Path, foreign: Foreign, tmp_path: Path) -> None:
    store = shutil.copytree(folder / "one.zarr", tmp_path / "s.zarr")
    before = Manifest.load(store).hash
    medians = json.loads(foreign.medians.read_text())
    # Medians that were stored as float32 count as the same.
    foreign.medians.write_text(json.dumps({gene: float(np.float32(median)) for gene, median in medians.items()}))
    build(tmp_path, foreign, add=True, top_k=None, name="three")
    gene = next(iter(medians))
    foreign.medians.write_text(json.dumps(medians | {gene: medians[gene] * (1 + 1e-6)}))
    with pytest.raises(
        DataError, match=rf"medians of 1 of 60 shared genes are not those of .*{gene}.* mean something else"
    ):
        build(tmp_path, foreign, add=True, top_k=None, name="four")
    foreign.medians.write_text(json.dumps({f"other {gene}": median for gene, median in medians.items()}))
    with pytest.raises(DataError, match=r"none of its 62 genes .* has a median in"):
        build(tmp_path, foreign, add=True, top_k=None, name="four")
    tokens = {f"other {gene}": token for gene, token in json.loads(foreign.tokens.read_text()).items()}
    foreign.tokens.write_text(json.dumps(tokens))
    with pytest.raises(
        DataError, match=r"none of its genes .* is in the vocabulary of .*import into a store of its own"
    ):
        build(tmp_path, foreign, add=True, top_k=None, name="four")
    assert [entry.name for entry in Manifest.load(store).datasets] == ["one", "three"]
    assert before != Manifest.load(store).hash


def test_stores_of_values_and_of_dithered_ranks_take_no_ranks(folder: Path, foreign: Foreign, tmp_path: Path) -> None:
    for option, message in (("keep_values", "keeps values"), ("dither", "were dithered")):
        shutil.rmtree(tmp_path / "s.zarr", ignore_errors=True)
        files: Any = [folder / "one.h5ad"], folder / "m.zarr", tmp_path / "s.zarr"
        make_store(*files, say=quiet, **{option: True})  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            build(tmp_path, foreign, add=True, top_k=None)


def test_genes_without_a_median_empty_cells_and_top_k(foreign: Foreign, tmp_path: Path) -> None:
    medians, tokens = (json.loads(path.read_text()) for path in (foreign.medians, foreign.tokens))
    (lost, *_), (kept, second, *_) = list(medians)[:1], list(medians)[1:]
    del medians[lost]
    foreign.medians.write_text(json.dumps(medians))
    a, b, c = tokens[kept], tokens[lost], tokens[second]
    lines: list[str] = []
    manifest = build(tmp_path, foreign, [[2, b, 3], [a, b, c], [], [c, a], [b]], top_k=1, say=lines.append)
    (entry,) = manifest.datasets
    assert (entry.n_cells, entry.n_tokens, entry.empty_cells, entry.source_cells) == (2, 2, 3, 5)
    assert entry.imported is not None
    assert entry.imported["dropped"] == {"outside": 3, "same_gene": 0, "cut": 2}
    genes = Tokenizer.load(tmp_path / "s.zarr").vocabulary.genes
    assert [genes[token - FIRST_GENE] for token in arrays(tmp_path / "s.zarr", "two")["tokens"]] == [kept, second]
    obs = pd.read_parquet(tmp_path / "s.zarr/two/obs.parquet")
    assert obs["source_row"].tolist() == [1, 3]
    assert obs["cell_id"].tolist() == ["1", "3"]
    assert any("of 62 genes that have a token 59 have a median" in line for line in lines)
    assert any(
        "2 cells kept, 3 without a token left out; 2 tokens; dropped 3 of genes without" in line for line in lines
    )


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[4, 5], [4, 999]], r"row 1 has the token 999, which the token dictionary does not know"),
        ([[4, -1]], r"row 0 has the token -1, which"),
        ([[4, 5], [6], [7, 4, 7]], r"row 2 has the token 7 twice"),
        ([[0, 1], [], [2, 3]], r"none of its 3 cells has a token"),
    ],
)
def test_cells_that_cannot_be_used(
    foreign: Foreign, tmp_path: Path, cells: list[list[int]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.corpora.ranked_corpus._CELLS", 2)
    with pytest.raises(DataError, match=r"two\.arrow: " + message):
        build(tmp_path, foreign, cells)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["foreign", "two.arrow"]


def test_columns_and_splits(foreign: Foreign, tmp_path: Path) -> None:
    manifest = build(tmp_path, foreign, obs_columns=["cell_type"], splits=SplitOptions(validation=0.3))
    (entry,) = manifest.datasets
    # The donors are kept too, since cells are split by them.
    assert (entry.split_by, entry.donor_key, entry.obs_columns) == ("donor", "donor_id", ["cell_type"])
    obs = pd.read_parquet(tmp_path / "s.zarr/two/obs.parquet")
    assert set(obs.columns) == {"cell_type", "donor_id", "source_row", "cell_id"}
    held = arrays(tmp_path / "s.zarr", "two")["split"]
    assert obs.groupby("donor_id")["source_row"].agg(lambda rows: len(set(held[rows]))).eq(1).all()
    once = contents(tmp_path / "s.zarr/two")
    shutil.rmtree(tmp_path / "s.zarr")
    build(tmp_path, foreign, obs_columns=["cell_type", "cell_type"], splits=SplitOptions(validation=0.3))
    assert contents(tmp_path / "s.zarr/two") == once
    for columns, message in ((["nobody"], "does not exist"), (["nested"], "is nested")):
        table = foreign.tables(1)[0].append_column("nested", pa.array([[1]] * 40))
        path = write_arrow(tmp_path / "a.arrow", table)
        with pytest.raises(
            DataError, match=rf"a\.arrow: column '{columns[0]}' {message}: --obs-columns can name cell_type"
        ):
            import_corpus([path], foreign.tokens, foreign.medians, tmp_path / "t.zarr", obs_columns=columns, say=quiet)
    by_donor = SplitOptions(by="donor")
    for columns_of, message in (({}, "a: no donor column in obs"), ({"donor": ["d"] * 40}, "1 known donors: too few")):
        path = write_arrow(tmp_path / "a.arrow", table_of(foreign.cells, **columns_of))
        with pytest.raises(DataError, match=message):
            import_corpus([path], foreign.tokens, foreign.medians, tmp_path / "t.zarr", splits=by_donor, say=quiet)
    assert not (tmp_path / "t.zarr").exists()


@pytest.mark.parametrize("name", ["{}/precious", "sub/two", "sub\\two", "two\0", "..", ""])
def test_a_name_leads_nowhere_else(foreign: Foreign, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").write_text("")
    with pytest.raises(DataError, match=r"cannot name a data set: choose another name with --name"):
        build(tmp_path, foreign, name=name.format(tmp_path))
    assert (precious / "kept").exists()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["foreign", "precious", "two.arrow"]


def test_a_killed_import_leaves_no_store_and_can_be_started_again(
    foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.corpora.ranked_corpus._CELLS", 10)
    append, calls = DatasetWriter.append, []

    def dies(self: DatasetWriter, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(import_corpus_module.DatasetWriter, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, foreign)
    assert not (tmp_path / "s.zarr").exists()
    monkeypatch.setattr(import_corpus_module.DatasetWriter, "append", append)
    build(tmp_path, foreign)
    assert find_damage(tmp_path / "s.zarr") == []
    assert sorted(found.name for found in tmp_path.iterdir()) == ["foreign", "s.zarr", "two.arrow"]


def test_a_corpus_that_changes_meanwhile(foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = DatasetWriter.append

    def touches(self: DatasetWriter, *arguments: Any) -> None:
        append(self, *arguments)
        (tmp_path / "two.arrow").touch()

    monkeypatch.setattr(import_corpus_module.DatasetWriter, "append", touches)
    with pytest.raises(DataError, match=r"two\.arrow: changed while it was read"):
        build(tmp_path, foreign)
    assert not (tmp_path / "s.zarr").exists()


def test_from_the_command_line_to_a_training(
    foreign: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = save_to_disk(tmp_path / "corpus", foreign.tables(2))
    words = ["data", "import", str(corpus), "--tokens", str(foreign.tokens), "--medians", str(foreign.medians)]
    store = tmp_path / "s.zarr"
    assert main([*words, "--out", str(store), "--name", "theirs", "--top-k", "48", "--split-by", "cell"]) == 0
    assert main([*words, "--out", str(store)]) == 1
    assert "s.zarr: exists already" in capsys.readouterr().err
    two = [*map(str, sorted(corpus.glob("*.arrow")))]
    assert main(["data", "import", *two, *words[3:], "--out", str(tmp_path / "t.zarr")]) == 1
    assert "2 folders or files become one data set: name it with --name" in capsys.readouterr().err
    assert main(["data", "inspect", str(store)]) == 0
    assert main(["data", "verify", str(store)]) == 0
    printed = capsys.readouterr().out
    assert "  theirs\n    imported   data-00000-of-00002.arrow, data-00001-of-00002.arrow (2 files" in printed
    assert main(["fit", *tiny_words(store, tmp_path / "run"), "trainer.max_steps=2", "optim.schedule_steps=12"]) == 0
