"""Read a table of regulators and targets, such as `gm-train data simulate --regulators` writes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.objective.pathway import tokens_of_names

#: The columns that a table must have, and those that it may have.
REGULATOR, TARGET = "regulator", "target"
_MORE = ("sign", "strength")


@dataclass(frozen=True)
class RegulatedPairs:
    """Pairs of a regulator and its target, each once.

    Attributes:
        tokens: int64 (n, 2), regulator and target, of pairs with a direction.
        known: int64 (n_known, 2), all pairs, also those without a direction: none of them is unrelated.
        n_listed: pairs in the file.
        n_unknown: pairs of which a gene is not in the vocabulary.
        n_undirected: known pairs of a gene with itself, and pairs that are listed in both directions.
    """

    tokens: npt.NDArray[np.int64]
    known: npt.NDArray[np.int64]
    n_listed: int
    n_unknown: int
    n_undirected: int


def read_regulation(path: Path, tokenizer: Tokenizer) -> RegulatedPairs:
    """Read the pairs whose genes are in the vocabulary, and which of them have a direction.

    Args:
        path: text with tabs. The first line names the columns: regulator and target, and perhaps sign and strength.
        tokenizer: of the model; gene ids, and symbols if it has a gene table, name genes.

    Raises:
        DataError: the file cannot be read, has other columns or a line with more or fewer fields, or no pair is left.
    """
    way_out = f"give --regulation a table with the columns {REGULATOR} and {TARGET} between tabs"
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}: {way_out}")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}): {way_out}") from error
    columns = lines[0].split("\t") if lines else []
    unknown = [name for name in columns if name not in (REGULATOR, TARGET, *_MORE)]
    if unknown or not {REGULATOR, TARGET} <= set(columns) or len(columns) > len(set(columns)):
        found = ", ".join(repr(name) for name in columns[:6]) or "nothing"
        raise DataError(
            f"{path}: its first line has {found}, but a table of regulation has the columns {REGULATOR} and {TARGET} "
            f"between tabs, and may have {' and '.join(_MORE)}: name its columns so, and remove others"
        )
    listed: set[tuple[str, str]] = set()
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = dict(zip(columns, line.split("\t"), strict=False))
        if line.count("\t") != len(columns) - 1 or not fields[REGULATOR] or not fields[TARGET]:
            raise DataError(
                f"{path}, line {number}: expected {len(columns)} fields between tabs, with a {REGULATOR} and a "
                f"{TARGET}: {line[:60]!r}"
            )
        listed.add((fields[REGULATOR], fields[TARGET]))
    if not listed:
        raise DataError(f"{path}: has no pairs: {way_out}")
    token_of = tokens_of_names(tokenizer)
    known = {(token_of[a], token_of[b]) for a, b in listed if a in token_of and b in token_of}
    if not known:
        names = ", ".join(next(iter(sorted(listed))))
        raise DataError(
            f"{path}: of its {len(listed):,} pairs, none has both genes in the store's vocabulary (its first: {names}; "
            f"the vocabulary's: {tokenizer.vocabulary.genes[0]}): use the store's gene ids (for a store of Ensembl "
            "ids, `gm-train data medians --gene-table` keeps the symbols)"
        )
    directed = sorted((a, b) for a, b in known if a != b and (b, a) not in known)
    n_unknown = sum(a not in token_of or b not in token_of for a, b in listed)
    tokens, all_known = (np.array(pairs, np.int64).reshape(-1, 2) for pairs in (directed, sorted(known)))
    return RegulatedPairs(tokens, all_known, len(listed), n_unknown, len(known) - len(directed))
