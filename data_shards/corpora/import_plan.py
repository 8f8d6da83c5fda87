"""What cells that are ranked already become in a store: its vocabulary and medians, and their tokens there."""

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

#: Medians that were kept as float32 differ by this share at most.
_FLOAT32 = 2.0**-23


def plan_import(
    out: Path, tokens_path: Path, medians_path: Path, top_k: int | None, add: bool
) -> tuple[StorePlan, TokenMap, "GenesFound"]:
    """What a store is made with, what each foreign token becomes in it, and of how many genes.

    Args:
        out: the store.
        tokens_path: gene id -> token.
        medians_path: gene id -> non-zero median.
        top_k: most tokens of a cell, if it is asked for.
        add: `out` is there, and its tokenizer is taken.

    Raises:
        DataError: a dictionary cannot be used, they do not belong together, or not to the store.
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
            f"{medians_path}: are they of one corpus, and the names gene ids?"
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
    """Genes of a dictionary: all, those with a median, and those of the vocabulary; and the names of its specials."""

    delivered: int
    with_median: int
    known: int
    specials: tuple[str, ...]

    def __str__(self) -> str:
        text = f"of {self.delivered:,} genes that have a token {self.with_median:,} have a median"
        if self.known < self.with_median:
            text += f", {self.known:,} of them are of the store's vocabulary"
        return text + (f"; {', '.join(self.specials)} dropped" if self.specials else "")


def _refuse_other_medians(
    out: Path, plan: StorePlan, medians: dict[str, float], ids: dict[str, str], medians_path: Path
) -> None:
    """Ranks by other medians mean something else: in one store they would be two languages."""
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
            f"({gene}: {medians[gene]:g}, there {own[gene]:g}): ranks by other medians mean something else; import "
            "into a store of its own"
        )
