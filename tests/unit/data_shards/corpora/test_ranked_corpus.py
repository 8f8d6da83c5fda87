"""Read corpora that are ranked already: cells, annotations, and errors in them."""

import os
import pickle
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.corpora import ranked_corpus
from data_shards.corpora.dictionaries import read_median_dictionary, read_token_dictionary
from data_shards.corpora.ranked_corpus import RankedCorpus
from data_shards.errors import DataError
from tests.support.ranked_corpora import save_to_disk, table_of, write_arrow, write_parquet

CELLS = [[5, 3, 9], [], [4], [9, 8, 7, 3], [6]]


def read(corpus: RankedCorpus) -> tuple[list[list[int]], list[tuple[str, int]]]:
    """All cells, and the file and row of each."""
    cells, origins = [], []
    for part in corpus.cells(corpus.columns):
        bounds = part.indptr.tolist()
        cells += [part.tokens[a:b].tolist() for a, b in pairwise(bounds)]
        origins += [(part.file.name, part.first_row + i) for i in range(len(bounds) - 1)]
    return cells, origins


@pytest.mark.parametrize("batch", [2, 4096])
def test_every_layout_gives_the_same_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(ranked_corpus, "_CELLS", batch)
    donors = ["a", None, "b", "b", "c"]
    tables = [table_of(CELLS[:3], donor=donors[:3]), table_of(CELLS[3:], donor=donors[3:])]
    folder = save_to_disk(tmp_path / "hf", tables)
    write_parquet(tmp_path / "parquet", tables)
    file_format = tmp_path / "one.arrow"
    whole = pa.concat_tables(tables)
    with pa.ipc.new_file(str(file_format), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=2)
    for paths in ([folder], [tmp_path / "parquet"], [file_format], sorted(folder.glob("*.arrow"))):
        corpus = RankedCorpus(paths)
        cells, origins = read(corpus)
        assert cells == CELLS
        assert corpus.n_cells == 5
        names = [file.name for file, rows in zip(corpus.files, corpus.rows, strict=True) for _ in range(rows)]
        rows = [row for rows in corpus.rows for row in range(rows)]
        assert origins == list(zip(names, rows, strict=True))
        found = [name for part in corpus.cells(["donor"]) for name in part.obs["donor"].fillna("")]
        assert found == [name or "" for name in donors]


@pytest.mark.parametrize("kind", [pa.list_(pa.uint16()), pa.large_list(pa.int32()), pa.list_(pa.int64(), 2)], ids=str)
def test_every_type_of_list(tmp_path: Path, kind: pa.DataType) -> None:
    cells = [[1, 2], [3, 4], [5, 6]]
    assert (
        read(RankedCorpus([write_arrow(tmp_path / "a.arrow", pa.table({"input_ids": pa.array(cells, kind)}))]))[0]
        == cells
    )


def test_annotations_have_one_type_in_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked_corpus, "_CELLS", 2)
    columns = {
        "age": pa.array([1, 2, None, 4, 5], pa.int32()),
        "primary": [True, False, None, True, True],
        "tissue": pa.array(["gut", "gut", "skin", None, "lung"]).dictionary_encode(),
        "embedding": [[1.0], [2.0], [3.0], [4.0], [5.0]],
        "cell_id": list("vwxyz"),
    }
    corpus = RankedCorpus([write_arrow(tmp_path / "a.arrow", table_of(CELLS, **columns))])
    assert corpus.columns == ["age", "primary", "tissue", "cell_id"]
    assert corpus.nested == ["embedding"]
    parts = [part.obs for part in corpus.cells(corpus.columns)]
    assert len({tuple(map(str, part.dtypes)) for part in parts}) == 1
    assert [name for part in parts for name in part["cell_id"]] == list("vwxyz")
    assert [tissue for column in corpus.column("tissue") for tissue in column.fillna("")] == [
        "gut",
        "gut",
        "skin",
        "",
        "lung",
    ]
    assert [age for part in parts for age in part["age"].fillna(-1)] == [1, 2, -1, 4, 5]


def _cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - size)


def test_files_cut_off(tmp_path: Path) -> None:
    table = table_of(CELLS)
    stream = write_arrow(tmp_path / "a.arrow", table, 2)
    # Cut off the end marker of eight bytes: every batch of the stream can still be read.
    _cut(stream, 8)
    with pytest.raises(DataError, match=r"a\.arrow: is cut off"):
        RankedCorpus([stream])
    parquet = tmp_path / "a.parquet"
    pq.write_table(table, parquet)
    _cut(parquet, 8)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read .* cut off, damaged"):
        RankedCorpus([parquet])
    folder = save_to_disk(tmp_path / "hf", [table, table])
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: is missing"):
        RankedCorpus([folder])


def test_damaged_offsets_lead_nowhere(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "a.arrow", table_of([[1, 2, 3]] * 3, length=False))
    offsets = np.array([0, 3, 6, 9], np.int32).tobytes()
    content = path.read_bytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 3, 1 << 30, 9], np.int32).tobytes()))
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read"):
        list(RankedCorpus([path]).cells([]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"tokens": [[1]]}), r"no column 'input_ids' .* tokens: list"),
        (pa.table({"input_ids": ["1 2"]}), r"column 'input_ids' is of type string: expected a list of whole numbers"),
        (pa.table({"input_ids": [[0.5]]}), r"column 'input_ids' is of type list.*double"),
        (table_of(CELLS, length=[3, 0, 1, 5, 1]), r"row 3 has 4 input_ids, but its 'length' is 5"),
        (table_of(CELLS, length=[3, 0, None, 4, 1]), r"row 2 has 1 input_ids, but its 'length' is nan"),  # type: ignore[list-item]
        (table_of([[1], [2, None, 3]], length=False), r"row 1 has a missing token"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_row(
    tmp_path: Path, table: pa.Table, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked_corpus, "_CELLS", 2)
    path = write_arrow(tmp_path / "a.arrow", table)
    with pytest.raises(DataError, match=r"a\.arrow: " + message):
        list(RankedCorpus([path]).cells([]))


def test_folders_that_are_not_one_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder"):
        RankedCorpus([tmp_path / "none"])
    with pytest.raises(DataError, match=r"no \.parquet and no \.arrow file in it"):
        RankedCorpus([tmp_path])
    save_to_disk(tmp_path / "both/train", [table_of(CELLS)])
    save_to_disk(tmp_path / "both/test", [table_of(CELLS)])
    (tmp_path / "both/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"holds several data sets \(test, train\): give one"):
        RankedCorpus([tmp_path / "both"])
    state = tmp_path / "both/test/state.json"
    state.write_text(
        state.read_text().replace('"_split"', '"_indices_data_files": [{"filename": "i.arrow"}], "_split"')
    )
    with pytest.raises(DataError, match=r"flatten_indices"):
        RankedCorpus([state.parent])
    state.write_text("{")
    with pytest.raises(DataError, match=r"state\.json: cannot be read"):
        RankedCorpus([state.parent])
    one = write_arrow(tmp_path / "1.arrow", table_of(CELLS))
    two = write_arrow(tmp_path / "2.arrow", table_of(CELLS, donor=list("abcde")))
    with pytest.raises(DataError, match=r"2\.arrow: its columns .* are not those of .*1\.arrow"):
        RankedCorpus([one, two])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dictionaries_from_json_and_from_any_pickle(tmp_path: Path, protocol: int) -> None:
    tokens = {"<pad>": 0, "<mask>": np.int64(1), "ENSG00000000003": 2, "ENSG00000000005": np.uint16(3)}
    medians = {
        "ENSG00000000003": np.float64(1.25),
        "ENSG00000000005": np.float32(0.1),
        "x": 3,
        "none": 0.0,
        "nan": None,
    }
    for name, content in (("tokens", tokens), ("medians", medians)):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_token_dictionary(tmp_path / "tokens.pkl") == (
        {"ENSG00000000003": 2, "ENSG00000000005": 3},
        {"<pad>": 0, "<mask>": 1},
    )
    found = read_median_dictionary(tmp_path / "medians.pkl")
    assert {name: median for name, median in found.items() if median == median} == {
        "ENSG00000000003": 1.25, "ENSG00000000005": float(np.float32(0.1)), "x": 3.0,
    }  # fmt: skip
    assert found.keys() == medians.keys()
    json_file = tmp_path / "tokens.json"
    json_file.write_text('{"<pad>": 0, "<mask>": 1, "ENSG00000000003": 2, "ENSG00000000005": 3}')
    assert read_token_dictionary(json_file) == read_token_dictionary(tmp_path / "tokens.pkl")


class Runs:
    """Unpickling this object runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path, trace = tmp_path / "tokens.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"a": Runs(f"touch {trace}")}))
    with pytest.raises(DataError, match=r"tokens\.pkl: calls posix\.system, .* could run any code"):
        read_token_dictionary(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OrderedDict(a=1), r"calls collections\.OrderedDict"),
        ({"a": np.zeros(2)}, r"calls numpy"),
        ({"a": np.array([print], dtype=object)[:0]}, r"calls numpy"),
        ([1, 2], r"expected a dictionary of gene id -> token, found list"),
        ({}, r"expected a dictionary"),
        ({1: "ENSG00000000003"}, r"found \(1, 'ENSG00000000003'\)"),
        ({"a": 1.5}, r"a has the token 1\.5"),
        ({"a": True}, r"a has the token True"),
        ({"a": -1}, r"a has the token -1"),
        ({"a": 1 << 40}, r"below 16,777,216"),
        ({"a": 7, "b": 7}, r"a and b have the same token, 7"),
    ],
    ids=repr,
)
def test_dictionaries_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "tokens.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"tokens\.pickle: .*" + message):
        read_token_dictionary(path)


def test_dictionaries_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("a.json", b"{"), ("a.pkl", b"\x80\x04}"), ("b.json", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: cannot be read .*expected JSON, or a pickle"):
            read_token_dictionary(tmp_path / name)
    with pytest.raises(DataError, match=r"no such file"):
        read_median_dictionary(tmp_path / "none.json")
    for median in ('"a"', "-1", "true", "Infinity", "[1]"):
        (tmp_path / "m.json").write_text(f'{{"ENSG00000000003": {median}}}')
        with pytest.raises(DataError, match=r"m\.json: the median of ENSG00000000003 is "):
            read_median_dictionary(tmp_path / "m.json")
