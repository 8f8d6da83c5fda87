"""Gene sets, the capped sampler of gene pairs, and the pathway-aware contrastive loss of GeneMamba."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from data_shards.compiled import compiled
from data_shards.errors import DataError
from data_shards.files.kinds import GENE_SETS, is_other
from data_shards.hashing import U64
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.cell_keys import token_hashes

_PURPOSE_DRAW = 21
I64 = npt.NDArray[np.int64]


def read_gmt(path: Path, setting: str = "objective.pathways") -> dict[str, list[str]]:
    """Read the gene sets of a GMT file: name to gene names.

    Args:
        path: of the file.
        setting: what named the file, for error messages.

    Raises:
        DataError: the file cannot be read, or a line lacks a name, a description or genes, separated by tabs.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        other = is_other(path, GENE_SETS) if path.exists() else "no such file"
        if other is not None:
            raise DataError(f"{path}: {other}: set {setting} to a .gmt file") from error
        raise DataError(f"{path}: cannot be read as gene sets ({error}): set {setting} to a .gmt file") from error
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        if len(rest) < 2:
            raise DataError(f"{path}, line {number}: expected name, description and genes between tabs: {line[:60]!r}")
        sets[name] = [gene for gene in rest[1:] if gene]
    if not sets:
        raise DataError(f"{path}: has no gene sets")
    return sets


def fitting_sets(sets: Mapping[str, list[str]], size: tuple[int, int]) -> list[list[str]]:
    """The sets with a number of different genes within `size`, smallest and largest, as the file counts them."""
    return [genes for genes in sets.values() if size[0] <= len(set(genes)) <= size[1]]


@dataclass(frozen=True)
class PathwayIndex:
    """The gene sets of each token, as bits.

    Attributes:
        bits: uint64 (vocabulary size, words): bit b of word w of a token is set if its gene is in set 64 w + b.
        n_sets: number of sets in use.
    """

    bits: npt.NDArray[np.uint64]
    n_sets: int

    @classmethod
    def build(
        cls,
        sets: Mapping[str, list[str]],
        token_of: Mapping[str, int],
        vocabulary_size: int,
        size: tuple[int, int],
        setting: str = "objective.pathways",
    ) -> "PathwayIndex":
        """Index the sets with a number of genes within `size`, as the file counts them, and with two or more tokens.

        Args:
            sets: name to gene names.
            token_of: gene name to token; genes without a token are skipped.
            vocabulary_size: number of tokens.
            size: number of genes of the smallest and of the largest set that is used.
            setting: what named the file, for error messages.

        Raises:
            DataError: no set is left.
        """
        fitting = fitting_sets(sets, size)
        known = [{token_of[gene] for gene in genes if gene in token_of} for genes in fitting]
        used = [sorted(tokens) for tokens in known if len(tokens) > 1]
        if not used:
            raise DataError(
                f"of the {len(sets):,} gene sets of {setting}, {len(fitting):,} have {size[0]} to {size[1]} "
                "genes, and none of these has two genes in the store's vocabulary: use gene sets of the store's genes "
                "(for a store of Ensembl ids, `gm-train data medians --gene-table` keeps the symbols), or "
                + ("set objective.pathways='' to train without" if setting == "objective.pathways" else "leave it out")
            )
        bits = np.zeros((vocabulary_size, -(-len(used) // 64)), dtype=np.uint64)
        for number, tokens in enumerate(used):
            bits[tokens, number // 64] |= np.uint64(1 << (number % 64))
        return cls(bits, len(used))

    @property
    def annotated(self) -> npt.NDArray[np.bool_]:
        """Which tokens are in any set: bool (vocabulary size,)."""
        return np.asarray(self.bits.any(axis=1))


def tokens_of_names(tokenizer: Tokenizer) -> dict[str, int]:
    """The token of each name that gene sets may use: gene ids, and symbols to which the gene table gives one id."""
    token_of = dict(tokenizer.vocabulary.token_of)
    if tokenizer.gene_table is None:
        return token_of
    symbols = {
        symbol: token_of[next(iter(ids))]
        for symbol, ids in tokenizer.gene_table.ids_of.items()
        if len(ids) == 1 and next(iter(ids)) in token_of
    }
    return symbols | token_of


def pathways_of(objective: ObjectiveConfig, tokenizer: Tokenizer) -> PathwayIndex | None:
    """Read the gene sets that a run trains on; None if it trains without.

    Raises:
        DataError: the file cannot be read, or no set is left.
    """
    if not objective.pathways or objective.gamma == 0:
        return None
    return index_gene_sets(Path(objective.pathways), objective, tokenizer)


def index_gene_sets(
    path: Path, objective: ObjectiveConfig, tokenizer: Tokenizer, setting: str = "objective.pathways"
) -> PathwayIndex:
    """Read the sets of a GMT file that are as large as a run's may be.

    Args:
        path: of the file.
        objective: has the sizes.
        tokenizer: of the run.
        setting: what named the file, for error messages.

    Raises:
        DataError: the file cannot be read, or no set is left.
    """
    low, high = objective.pathway_size
    sets, token_of = read_gmt(path, setting), tokens_of_names(tokenizer)
    return PathwayIndex.build(sets, token_of, tokenizer.vocabulary.size, (low, high), setting)


@compiled()
def _draw(tokens, hidden, lengths, hashes, bits, annotated, n_draw):  # type: ignore[no-untyped-def]
    n_cells = len(lengths)
    drawn = np.full((n_cells, n_draw), -1, np.int64)
    positive = np.zeros((n_cells, n_draw, n_draw), np.bool_)
    start = 0
    for cell in range(n_cells):
        stop = start + lengths[cell]
        candidates = np.empty(stop - start, np.int64)
        n = 0
        for index in range(start, stop):
            if annotated[tokens[index]] and not hidden[index]:
                candidates[n] = index
                n += 1
        candidates = candidates[:n]
        # Hashes have 64 bits: equal ones within a cell do not occur in practice, and would only swap two genes.
        chosen = candidates[np.argsort(hashes[candidates])[:n_draw]]
        for a in range(len(chosen)):
            drawn[cell, a] = chosen[a]
            for b in range(a):
                for word in range(bits.shape[1]):
                    if bits[tokens[chosen[a]], word] & bits[tokens[chosen[b]], word]:
                        positive[cell, a, b] = True
                        positive[cell, b, a] = True
                        break
        start = stop
    return drawn, positive


def draw_pairs(
    tokens: I64, hidden: npt.NDArray[np.bool_], lengths: I64, keys: U64, index: PathwayIndex, n_draw: int
) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Draw genes of each cell, and find which pairs of them share a set.

    Only genes that are in a set and not hidden are drawn: a pair with a gene of no set can never be positive.

    Args:
        tokens: int64 (n_tokens,), cells one after another.
        hidden: bool (n_tokens,), the masked positions.
        lengths: int64 (n_cells,), tokens of each cell.
        keys: uint64 (n_cells,), from `cell_keys`.
        index: the gene sets.
        n_draw: maximum number of genes of a cell; it keeps the cost of the loss linear in the number of cells.

    Returns:
        `drawn`, int64 (n_cells, n_draw), positions in `tokens`, -1 where a cell has no more; `positive`,
        bool (n_cells, n_draw, n_draw), symmetric, False on the diagonal.
    """
    hashes = token_hashes(keys, lengths, _PURPOSE_DRAW)
    drawn, positive = _draw(tokens, hidden, lengths, hashes, index.bits, index.annotated, n_draw)
    return drawn, positive


def pathway_loss_sum(states: Tensor, drawn: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Sum the pathway-aware contrastive loss over all positive pairs (arXiv 2504.16956, InfoNCE).

    For a positive pair (i, j) of a cell: -log( exp(s_ij) / (exp(s_ij) + sum_k exp(s_ik)) ), where s is the cosine
    divided by the temperature and k runs over the drawn genes that are neither i nor a positive of i.

    Args:
        states: (n_positions, d_model), states of all rows after the final norm, flattened.
        drawn: int64 (n_cells, n_draw), positions in `states`, -1 where a cell has no more.
        positive: bool (n_cells, n_draw, n_draw), as from `draw_pairs`.
        temperature: tau.

    Returns:
        The sum, a float32 (float64 for float64 states) scalar; the number of pairs is `positive.sum()`.
    """
    exists = drawn >= 0
    wide = states.float() if states.dtype in (torch.bfloat16, torch.float16) else states
    vectors = F.normalize(wide[drawn.clamp(min=0)], dim=-1, eps=1e-6)
    # Cosines divided by a small temperature reach 10, where bfloat16 has steps of 0.06: no autocast for this product.
    with torch.autocast(states.device.type, enabled=False):
        similarity = vectors @ vectors.transpose(1, 2) / temperature
    itself = torch.eye(drawn.shape[1], dtype=torch.bool, device=drawn.device)
    negative = exists[:, :, None] & exists[:, None, :] & ~positive & ~itself
    # The mask is finite, so that a gene without negatives has a loss and a gradient of zero, not NaN.
    against = similarity.masked_fill(~negative, -1e9).logsumexp(dim=-1, keepdim=True)
    loss = torch.logaddexp(similarity, against) - similarity
    return loss.masked_fill(~positive, 0.0).sum()
