"""Vocabulary and medians of published weights: dictionaries in JSON, and the rows of the weights that they name."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.corpora.dictionaries import read_median_dictionary, read_token_dictionary
from data_shards.corpora.token_map import gene_ids, medians_of_genes
from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import Vocabulary

#: The dictionaries beside weights that `gm-train export --format published` wrote.
TOKENS, MEDIANS = "token_dictionary.json", "medians.json"
#: `<pad>` and `[PAD]` are special tokens and not genes.
_SPECIAL = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


@dataclass(frozen=True)
class PublishedVocabulary:
    """Genes of published weights, and the row of each.

    Attributes:
        tokenizer: vocabulary and medians.
        rows: row of each gene, in the order of the vocabulary.
        pad, mask: rows of the special tokens; None: there is none.
        without_median: number of genes that are left out because no median is known.
        no_genes: names that are left out because they are neither gene ids nor pad or mask.
    """

    tokenizer: Tokenizer
    rows: list[int]
    pad: int | None
    mask: int | None
    without_median: int
    no_genes: list[str]


def read_published_vocabulary(
    tokens_path: Path, medians_path: Path | None, n_rows: int, pad_row: int, top_k: int
) -> PublishedVocabulary:
    """Read the dictionaries of published weights.

    Args:
        tokens_path: JSON of gene id -> token, or a `tokenizer.json` of Hugging Face's tokenizers.
        medians_path: JSON of gene id -> non-zero median; None: every median is 1, so raw counts are ranked.
        n_rows: rows of the embedding.
        pad_row: row of the pad if the dictionary does not name it.
        top_k: most tokens of a cell.

    Raises:
        DataError: a file cannot be read, a token has no row, or no gene has a token and a median.
    """
    tokens, specials = _read_tokens(tokens_path)
    for name, token in (tokens | specials).items():
        if token >= n_rows:
            raise DataError(
                f"{tokens_path}: {name} has the token {token:,}, the weights have {n_rows:,} rows: is it the "
                "vocabulary of these weights?"
            )
    kind, ids = gene_ids(sorted(tokens))
    row_of: dict[str, int] = {}
    for name, gene in ids.items():
        row_of.setdefault(gene, tokens[name])
    known = dict.fromkeys(row_of, 1.0)
    if medians_path is not None:
        known = medians_of_genes(read_median_dictionary(_json(medians_path)), kind, medians_path)
    genes = tuple(sorted(gene for gene in row_of if gene in known))
    if not genes:
        raise DataError(
            f"{tokens_path}: none of its {len(tokens):,} names is a gene with a median in {medians_path}: the two must "
            "have the same kind of gene ids"
        )
    tokenizer = Tokenizer(Vocabulary(kind, genes), np.array([known[gene] for gene in genes], np.float64), top_k)
    rows = [row_of[gene] for gene in genes]
    pad, mask = (_find(specials, name) for name in ("pad", "mask"))
    others = {token: name for name, token in (tokens | specials).items()}
    if pad is None and pad_row < n_rows and pad_row not in others:
        pad = pad_row
    no_genes = sorted(name for token, name in others.items() if token not in {*row_of.values(), pad, mask})
    return PublishedVocabulary(tokenizer, rows, pad, mask, len(row_of) - len(genes), no_genes)


def _find(specials: dict[str, int], name: str) -> int | None:
    return next((token for text, token in specials.items() if text.strip("<>[]").lower() == name), None)


def _json(path: Path) -> Path:
    if path.suffix in (".pkl", ".pickle"):
        raise DataError(f"{path}: is a pickle, which can run any code, so it was not read: save it as JSON")
    return path


def _read_tokens(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Read tokens of genes and of specials."""
    content = _nested(_json(path))
    if content is None:
        tokens, specials = read_token_dictionary(path)
        tokens |= specials
    else:
        tokens = content
    return (
        {name: token for name, token in tokens.items() if not _SPECIAL.fullmatch(name)},
        {name: token for name, token in tokens.items() if _SPECIAL.fullmatch(name)},
    )


def _nested(path: Path) -> dict[str, int] | None:
    """Read the tokens of a `tokenizer.json` of Hugging Face's tokenizers; None if the file is another one."""
    try:
        content = json.loads(path.read_text())
        vocabulary = dict(content["model"]["vocab"])
        added = {str(entry["content"]): entry["id"] for entry in content.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `read_token_dictionary` says what is wrong with it
    tokens = vocabulary | added
    if not all(type(token) is int and token >= 0 for token in tokens.values()):
        raise DataError(f"{path}: model.vocab holds tokens that are not whole numbers from 0")
    return tokens


def write_dictionaries(folder: Path, tokenizer: Tokenizer, specials: dict[str, int]) -> None:
    """Write the dictionaries of weights in the published layout."""
    tokens = specials | tokenizer.vocabulary.token_of
    (folder / TOKENS).write_text(json.dumps(tokens, indent=0) + "\n")
    medians = dict(zip(tokenizer.vocabulary.genes, map(float, tokenizer.medians), strict=True))
    (folder / MEDIANS).write_text(json.dumps(medians, indent=0) + "\n")
