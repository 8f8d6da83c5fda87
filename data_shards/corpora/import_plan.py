"""Plan the import of ranked cells: the store's vocabulary and medians, and the new number of each foreign token."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.corpora.dictionaries import read_median_dictionary, read_token_dictionary
from data_shards.corpora.token_map import TokenMap, gene_ids, medians_of_genes
from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.prepare.store_plan import TOP_K, StoreOptions, StorePlan, plan_more
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import Vocabulary

#: Largest relative difference of medians that were once stored as float32.
_FLOAT32 = 2.0**-23


def plan_import(
    out: Path, tokens_path: Path, medians_path: Path, top_k: int | None, add: bool
) -> tuple[StorePlan, TokenMap, "GenesFound"]:
    """Plan the import of ranked cells.

    Args:
        out: the store.
        tokens_path: dictionary gene id -> token.
        medians_path: dictionary gene id -> non-zero median.
        top_k: maximum number of tokens of a cell; None takes the default, or with `add` the store's own.
        add: add to the existing store `out`, with its tokenizer.

    Returns:
        The store's plan, the map of foreign tokens, and how many genes were found.

    Raises:
        DataError: a dictionary cannot be used, the two do not belong together, or they do not fit the store.
    """
    tokens, specials = read_token_dictionary(tokens_path)
    plan = plan_more(out, None, StoreOptions(top_k=top_k)) if add else None
    kind, ids = gene_ids(list(tokens), None if plan is None else plan.tokenizer.vocabulary.kind)
    medians = medians_of_genes(read_median_dictionary(medians_path), kind, medians_path)
    ids = {token: gene for token, gene in ids.items() if gene in medians}
    genes = sorted(set(ids.values()))
    if not genes:
        raise DataError(
            f"{tokens_path}: none of its {len(tokens):,} genes ({', '.join(list(tokens)[:3])} …) has a median in "
            f"{medians_path}: do both files belong to one corpus, and are the names gene ids?"
        )
    if plan is None:
        vocabulary = Vocabulary(kind, tuple(genes))
        tokenizer = Tokenizer(vocabulary, np.array([medians[gene] for gene in genes]), top_k or TOP_K)
        plan = StorePlan(tokenizer, hash_path(medians_path), False, StoreOptions().record())
    else:
        _refuse_other_medians(out, plan, medians, ids, medians_path)
    known = set(genes) & plan.tokenizer.vocabulary.token_of.keys()
    report = GenesFound(len(tokens), len(genes), len(known), tuple(specials))
    return plan, TokenMap.build(tokens, specials, ids, plan.tokenizer.vocabulary), report


@dataclass(frozen=True)
class GenesFound:
    """How many genes of a dictionary can be used.

    Attributes:
        delivered: genes of the token dictionary.
        with_median: those that have a median.
        known: those that are in the store's vocabulary.
        specials: names of its specials, such as `<pad>`.
    """

    delivered: int
    with_median: int
    known: int
    specials: tuple[str, ...]

    def __str__(self) -> str:
        text = f"of {self.delivered:,} genes that have a token {self.with_median:,} have a median"
        if self.known < self.with_median:
            text += f", {self.known:,} of them are in the store's vocabulary"
        return text + (f"; {', '.join(self.specials)} dropped" if self.specials else "")


def _refuse_other_medians(
    out: Path, plan: StorePlan, medians: dict[str, float], ids: dict[str, str], medians_path: Path
) -> None:
    """Raise DataError if the corpus does not fit the store: ranks by other medians mean something else."""
    if plan.values:
        raise DataError(f"{out}: keeps values, which a corpus of ranks does not have: import into a store of its own")
    if plan.tokenizer.dither:
        raise DataError(f"{out}: its counts were dithered before ranking: import into a store of its own")
    vocabulary = plan.tokenizer.vocabulary
    shared = sorted(set(ids.values()) & vocabulary.token_of.keys())
    if not shared:
        raise DataError(
            f"{medians_path}: none of its genes ({', '.join(sorted(medians)[:3])} …) is in the vocabulary of {out} "
            f"({vocabulary.kind} ids: {', '.join(vocabulary.genes[:3])} …): import into a store of its own"
        )
    own = dict(zip(vocabulary.genes, plan.tokenizer.medians.tolist(), strict=True))
    other = [gene for gene in shared if abs(medians[gene] - own[gene]) > _FLOAT32 * own[gene]]
    if other:
        gene = other[0]
        raise DataError(
            f"{medians_path}: the medians of {len(other):,} of {len(shared):,} shared genes are not those of {out} "
            f"({gene}: {medians[gene]:g}, in the store {own[gene]:g}): ranks by other medians mean something else; "
            "import into a store of its own"
        )
