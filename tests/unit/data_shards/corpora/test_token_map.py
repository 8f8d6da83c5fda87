"""Foreign tokens mapped to ours: against a plain loop, and with names or medians that do not fit."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.corpora.token_map import NOT_KNOWN, TWICE, TokenMap, gene_ids, medians_of_genes
from data_shards.errors import DataError
from data_shards.tokens.vocabulary import FIRST_GENE, Vocabulary

NAMES = [f"g{i:02d}" for i in range(24)]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, int], Vocabulary, list[list[int]], int]:
    """Tokens of genes and of specials, a vocabulary of some of the genes, cells, and the top-k."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    numbers = draw(st.permutations(range(len(names) + 6)))
    tokens = dict(zip(names, numbers, strict=False))
    specials = {"<pad>": numbers[-1], "<cls>": numbers[-2]}
    known = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    anything = st.integers(0, len(names) + 8)
    good = st.lists(st.sampled_from([*tokens.values(), *specials.values()]), max_size=12, unique=True)
    cells = draw(st.lists(st.one_of(good, good, good, st.lists(anything, max_size=6)), max_size=8))
    padded = [[specials["<cls>"], *cell, specials["<pad>"], specials["<pad>"]] for cell in cells]
    return tokens, specials, Vocabulary("as-is", tuple(sorted(known))), padded, draw(st.integers(1, 8))


@given(corpora())
def test_mapping_is_that_of_a_plain_loop(
    case: tuple[dict[str, int], dict[str, int], Vocabulary, list[list[int]], int],
) -> None:
    tokens, specials, vocabulary, cells, top_k = case
    names = {token: name for name, token in tokens.items()}
    expected: list[list[int]] = []
    outside = cut = problem = 0
    for cell in cells:
        genes = [token for token in cell if token not in specials.values()]
        unknown = [token for token in genes if token not in names]
        if unknown or len(set(genes)) < len(genes):
            problem = 1
            break
        ours = [vocabulary.token_of[names[token]] for token in genes if names[token] in vocabulary.token_of]
        outside += len(genes) - len(ours)
        cut += max(0, len(ours) - top_k)
        expected.append(ours[:top_k])
    indptr = np.cumsum([0, *map(len, cells)]).astype(np.int64)
    flat = np.array([token for cell in cells for token in cell], np.int64)
    mapped = TokenMap.build(tokens, specials, {name: name for name in tokens}, vocabulary).map(flat, indptr, top_k)
    assert bool(mapped.problem) == bool(problem)
    bounds = np.cumsum([0, *mapped.lengths.tolist()])
    found = [mapped.tokens[a:b].tolist() for a, b in pairwise(bounds)]
    assert found[: len(expected)] == expected
    assert len(mapped.tokens) == sum(map(len, expected))
    assert mapped.tokens.dtype == np.uint16
    if problem:
        assert mapped.cell == len(expected)
        bad = [token for token in cells[mapped.cell] if token not in specials.values()]
        assert mapped.token not in names if mapped.problem == NOT_KNOWN else bad.count(mapped.token) > 1
    else:
        assert (mapped.outside, mapped.cut) == (outside, cut)


def test_a_token_again_in_the_next_cell_is_no_second_one() -> None:
    mapping = TokenMap.build({"a": 5, "b": 2}, {}, {"a": "a", "b": "b"}, Vocabulary("as-is", ("a", "b")))
    mapped = mapping.map(np.array([5, 2, 2, 5, 5]), np.array([0, 2, 4, 5]), 9)
    assert mapped.problem == 0
    assert mapped.tokens.tolist() == [2, 3, 3, 2, 2]
    assert mapping.map(np.array([5, 2, 5]), np.array([0, 3]), 9).problem == TWICE


def test_versions_are_stripped_and_the_first_of_two_counts() -> None:
    names = {"ENSG00000000003.14": 7, "ENSG00000000003.9": 8, "ENSG00000000005": 9, "LINC1": 10}
    kind, ids = gene_ids(list(names))
    assert kind == "ensembl"
    assert ids == {
        "ENSG00000000003.14": "ENSG00000000003", "ENSG00000000003.9": "ENSG00000000003",
        "ENSG00000000005": "ENSG00000000005",
    }  # fmt: skip
    vocabulary = Vocabulary("ensembl", ("ENSG00000000003", "ENSG00000000005"))
    mapped = TokenMap.build(names, {}, ids, vocabulary).map(np.array([8, 10, 9, 7]), np.array([0, 4]), 9)
    assert mapped.tokens.tolist() == [FIRST_GENE, FIRST_GENE + 1]
    assert (mapped.same_gene, mapped.outside) == (1, 1)
    assert gene_ids(["TP53", "EPCAM", "ENSG00000000005"])[0] == "as-is"


def test_medians_by_gene() -> None:
    path = Path("m.json")
    medians = {"ENSG00000000003.1": 2.0, "ENSG00000000003.2": 2.0, "ENSG00000000005": float("nan"), "x": 1.0}
    assert medians_of_genes(medians, "ensembl", path) == {"ENSG00000000003": 2.0}
    assert medians_of_genes({"x": 1.0}, "as-is", path) == {"x": 1.0}
    medians["ENSG00000000003.2"] = 3.0
    with pytest.raises(
        DataError, match=r"m\.json: ENSG00000000003\.1 \(2\) and ENSG00000000003\.2 \(3\) are one gene with different"
    ):
        medians_of_genes(medians, "ensembl", path)
