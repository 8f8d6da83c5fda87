"""Directed regulation between genes, known by construction: regulators drive targets, and a chain has a direction.

Each regulated gene g has an activity z_g in each cell, of mean 0 and variance 1:

    z_g = (sum over its regulators r of s_rg b z_r  +  e_g) / d_g,    e_g ~ N(0, 1) for each cell

with signs s_rg = +1 or -1, the same strength b for all pairs, and d_g such that the variance is 1. A molecule of g is
made with probability 1 / (1 + exp(-2 z_g)), so a response is bounded, as that of a promoter. s_rg b / d_g is what is
written as sign and strength: the effect on z_g of one standard deviation of z_r.

The first half of the regulators has no regulator. Each other one is regulated by one of them, and regulates targets as
they do: a chain A -> B -> C. The targets of a regulator are drawn from a pool of half as many genes as there are pairs,
so that a target has two regulators on average. Regulators and targets are drawn from the same genes, those of high
expression, and have the same variance: neither tells a regulator from a target. What does is that a regulator shows in
many genes and a target in few, so that a target says little on its regulator that the other targets do not say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.simulate.atlas_options import AtlasOptions

#: The response of a gene at its mean activity, per standard deviation, in units of log odds.
_SLOPE = 2.0

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regulation:
    """Which genes regulate which.

    Attributes:
        genes: int64 (n,), gene numbers: the regulators that are not regulated, the others, and the targets.
        n_regulators: how many of them are regulators.
        pairs: int64 (n_pairs, 2), regulator and target of each pair, as places in `genes`.
        effects: float64 (n_pairs,), effect on z of the target of one standard deviation of z of the regulator.
        own: float64 (n,), effect on z of a gene's own variation, 1 / d_g.
    """

    genes: I64
    n_regulators: int
    pairs: I64
    effects: F64
    own: F64


def draw_regulation(options: AtlasOptions, expression: F64) -> Regulation:
    """Draw regulators, targets and signs.

    Args:
        options: what to simulate; `regulators` is above 0.
        expression: float64 (genes,), the base expression of each gene.
    """
    rng = np.random.default_rng([options.seed, 2])
    n, n_targets = options.regulators, options.target_pool
    candidates = np.argsort(-expression, kind="stable")[: options.candidates]
    genes = rng.permutation(candidates)[: n + n_targets]
    n_first = -(-n // 2)
    chain = [(int(rng.integers(n_first)), regulator) for regulator in range(n_first, n)]
    of_regulator = [rng.choice(n_targets, options.targets_per_regulator, replace=False) for _ in range(n)]
    pairs = np.array(chain + [(r, n + t) for r, targets in enumerate(of_regulator) for t in targets], np.int64)
    raw = options.regulation_strength * rng.choice([-1.0, 1.0], len(pairs))
    weights = np.zeros((n, len(genes)))
    weights[pairs[:, 0], pairs[:, 1]] = raw
    # Regulators that are not regulated are independent, and of the others each has one regulator of these.
    own = np.ones(len(genes))
    own[n_first:n] = 1 / np.sqrt((weights[:, n_first:n] ** 2).sum(0) + 1)
    mixing = np.diag(own[:n])  # of the independent variations, to give z of the regulators
    mixing[n_first:] += (weights[:, n_first:n] * own[n_first:n]).T
    covariance = mixing @ mixing.T
    of_targets = weights[:, n:]
    own[n:] = 1 / np.sqrt(np.einsum("rt,rs,st->t", of_targets, covariance, of_targets) + 1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Regulation(genes, n, pairs[order], (raw * own[pairs[:, 1]])[order], own)


def draw_activities(regulation: Regulation, size: int, rng: np.random.Generator) -> F64:
    """Draw z of the regulated genes in some cells: float64 (size, n).

    Args:
        regulation: which genes regulate which.
        size: number of cells.
        rng: draws.
    """
    n, (regulator, target) = regulation.n_regulators, regulation.pairs.T
    z = rng.standard_normal((size, len(regulation.genes))) * regulation.own
    effects = sp.csr_matrix((regulation.effects, (regulator, target)), shape=(n, len(regulation.genes)))
    # Twice: first from the regulators that are not regulated to the others, then from all to their targets.
    z[:, :n] += z[:, :n] @ effects[:, :n]
    z[:, n:] += z[:, :n] @ effects[:, n:]
    return np.asarray(z)


def regulate(counts: sp.csr_matrix, regulation: Regulation, rng: np.random.Generator) -> None:
    """Remove molecules of the regulated genes that a cell does not make; entries that become 0 stay.

    Args:
        counts: float32 (size, genes), changed in place.
        regulation: which genes regulate which.
        rng: draws; the counts of other genes do not depend on it.
    """
    made = 1 / (1 + np.exp(-_SLOPE * draw_activities(regulation, counts.shape[0], rng)))
    place = np.full(counts.shape[1], -1)
    place[regulation.genes] = np.arange(len(regulation.genes))
    of_entry = place[counts.indices]
    entries = np.flatnonzero(of_entry >= 0)
    cells = np.searchsorted(counts.indptr, entries, side="right") - 1
    counts.data[entries] = rng.binomial(counts.data[entries].astype(np.int64), made[cells, of_entry[entries]])


def format_regulation(regulation: Regulation, gene_names: Sequence[str]) -> str:
    """Format the pairs as a table with tabs, a line each: regulator, target, sign (1 or -1) and strength."""
    lines = ["regulator\ttarget\tsign\tstrength"]
    for (regulator, target), effect in zip(regulation.genes[regulation.pairs], regulation.effects, strict=True):
        sign = -1 if effect < 0 else 1
        lines.append(f"{gene_names[regulator]}\t{gene_names[target]}\t{sign}\t{abs(effect):.4f}")
    return "\n".join(lines) + "\n"
