"""Tables of regulators and targets: what is read, and which bad ones are refused."""

from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.evaluation.pairs.regulation_file import read_regulation
from tests.conftest import Atlas


@pytest.fixture(scope="module")
def tokenizer(atlas: Atlas) -> Tokenizer:
    return Tokenizer.load(atlas.store)


def test_pairs_with_a_direction_are_read_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(
        "sign\tregulator\ttarget\tstrength\n"
        "1\tgene0001\tgene0002\t0.5\n"
        "1\tgene0001\tgene0002\t0.7\n"  # twice
        "-1\tgene0003\tgene0003\t\n"  # itself
        "\n"
        "1\tgene0004\tgene0005\t\n1\tgene0005\tgene0004\t\n"  # both directions
        "-1\tgene0001\tgene0006\t\n"
        "1\tgene0001\tunknown\t\n"
    )
    pairs = read_regulation(path, tokenizer)
    token_of = tokenizer.vocabulary.token_of
    expected = [[token_of["gene0001"], token_of["gene0002"]], [token_of["gene0001"], token_of["gene0006"]]]
    assert pairs.tokens.tolist() == sorted(expected)
    assert (pairs.n_listed, pairs.n_unknown, pairs.n_undirected) == (6, 1, 3)
    undirected = [(3, 3), (4, 5), (5, 4)]  # known all the same: no other pair is unrelated that is one of these
    expected += [[token_of[f"gene000{a}"], token_of[f"gene000{b}"]] for a, b in undirected]
    assert pairs.known.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line has nothing, but a table of regulation has the columns regulator and target"),
        ("TF\ttarget\na\tb\n", "its first line has 'TF', 'target', but"),
        ("regulator\ttarget\tscore\na\tb\t1\n", "'score', but .* remove others"),
        ("regulator\tregulator\ttarget\na\tb\tc\n", "its first line has 'regulator', 'regulator'"),
        ("regulator,target\na,b\n", "'regulator,target', but .* between tabs"),
        ("regulator\ttarget\ngene0001\n", r"line 2: expected 2 fields between tabs"),
        ("regulator\ttarget\ngene0001\t\n", r"line 2: expected 2 fields between tabs, with a regulator and a target"),
        ("regulator\ttarget\n\n", "has no pairs: give --regulation a table"),
        ("regulator\ttarget\nTP53\tMDM2\n", r"of its 1 pairs, none .* \(its first: TP53, MDM2; the .*: gene00\d\d\)"),
    ],
)
def test_bad_tables_are_refused_with_a_way_out(text: str, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"a\.tsv.*{message}"):
        read_regulation(path, tokenizer)


def test_what_is_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv: no such file: give --regulation a table"):
        read_regulation(tmp_path / "none.tsv", tokenizer)
    with pytest.raises(DataError, match="not a file: give --regulation"):
        read_regulation(tmp_path, tokenizer)
    (tmp_path / "b.tsv").write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(DataError, match=r"b\.tsv: cannot be read as text .*: give --regulation"):
        read_regulation(tmp_path / "b.tsv", tokenizer)
