"""Choose regulated pairs and random pairs like them, and score both: detection, direction, and how sure both are."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from gm_train.evaluation.pairs.matched_pairs import FREQUENCY_CLASSES

#: Pairs that are scored, at most, and targets of one regulator among them, so that there are many regulators.
MAX_PAIRS, MAX_TARGETS = 200, 20
#: Resamples of the bootstrap.
RESAMPLES = 500
#: Columns of expression that a regression sees besides the genes of the pairs, those that vary most.
_OTHERS = 1_000
#: Ridge, in units of the mean variance.
_RIDGE = 0.1
_TRIES = 50

BOOL = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def choose_pairs(pairs: I64, generator: np.random.Generator) -> I64:
    """Draw regulators, and of each a part of its targets, until there are enough pairs: int64 (n, 2), ascending.

    Args:
        pairs: int64 (n_all, 2), regulator and target.
        generator: draws.
    """
    shuffled = pairs[generator.permutation(len(pairs))]
    chosen: list[I64] = []
    for regulator in generator.permutation(np.unique(pairs[:, 0])):
        chosen.append(shuffled[shuffled[:, 0] == regulator][:MAX_TARGETS])
        if sum(map(len, chosen)) >= MAX_PAIRS:
            break
    found = np.concatenate([np.zeros((0, 2), np.int64), *chosen])[:MAX_PAIRS]
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def draw_unrelated(
    pairs: I64, known: I64, frequency: F64, can_ask: Callable[[I64], BOOL], generator: np.random.Generator
) -> I64:
    """Draw for each pair another target, of another pair, that the regulator does not regulate.

    The regulator stays the same. The other target is in the same fifth of the targets by how many cells have them, and
    is drawn as often as it has regulators. It is not linked with the regulator in either direction, directly or through
    one gene.

    Args:
        pairs: int64 (n, 2), tokens of regulators and targets.
        known: int64 (n_known, 2), all pairs that are known.
        frequency: float64 (vocabulary_size,), share of cells that have each gene.
        can_ask: takes pairs of tokens, int64 (m, 2); returns bool (m,), which can be scored.
        generator: draws.

    Returns:
        int64 (n, 2); -1 where no other target was found.
    """
    size = len(frequency)
    direct = scipy.sparse.csr_matrix((np.ones(len(known), np.int64), known.T), shape=(size, size))
    linked = direct + direct @ direct
    linked = linked + linked.T
    targets = pairs[:, 1]
    order = np.argsort(np.argsort(frequency[targets], kind="stable"), kind="stable")
    often = order * FREQUENCY_CLASSES // len(targets)
    drawn = np.full_like(pairs, -1)
    for _ in range(_TRIES):
        left = np.flatnonzero(drawn[:, 1] < 0)
        if not len(left):
            break
        others = np.array([generator.choice(targets[often == often[i]]) for i in left])
        tried = np.stack([pairs[left, 0], others], axis=1)
        fine = (tried[:, 0] != others) & (np.asarray(linked[*tried.T]).ravel() == 0) & can_ask(tried)
        drawn[left[fine]] = tried[fine]
    return drawn


@dataclass(frozen=True)
class DirectedScore:
    """What one scorer says of some pairs; in %.

    Attributes:
        detection: AUROC of regulated pairs against unrelated ones; 50 is chance.
        direction: regulated pairs of which the regulator has the higher score on the target than the other way round; a
            tie counts as half.
        resampled: float64 (RESAMPLES, 2), both with regulators drawn anew, with all their pairs.
    """

    detection: float
    direction: float
    resampled: F64


def score_directed(forward: F64, backward: F64, unrelated: F64, regulators: I64) -> DirectedScore:
    """Score the scores of pairs, by one scorer.

    Args:
        forward: float64 (n,), what it says of the regulator's effect on the target.
        backward: float64 (n,), what it says of the target's effect on the regulator.
        unrelated: float64 (n,), what it says of the pair that is matched with each of them.
        regulators: int64 (n,), the regulator of each pair.
    """
    higher = _above(forward[:, None], unrelated[None, :])
    directed = _above(forward, backward)
    _, of_pair = np.unique(regulators, return_inverse=True)
    n = int(of_pair.max()) + 1
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)[:, of_pair].astype(np.float64)
    total = weights.sum(1)
    detected = ((weights @ higher) * weights).sum(1) / total**2
    resampled = 100 * np.stack([detected, weights @ directed / total], axis=1)
    return DirectedScore(100 * float(higher.mean()), 100 * float(directed.mean()), resampled)


def _above(a: F64, b: F64) -> F64:
    """1 where a is above b, 0.5 where they are equal, else 0."""
    return np.asarray((a > b) + 0.5 * (a == b))


def regression_effects(expression: scipy.sparse.csr_matrix, genes: I64) -> F64:
    """Ridge regressions of each gene on all others: float64 (n_genes, n_genes), of the first gene on the second.

    With S the covariance over cells and K = (S + l I)^-1, the coefficient of i in the regression of j on all others is
    -K_ij / K_jj. The others are these genes and those that vary most.

    Args:
        expression: float32 (n_cells, n_all_genes).
        genes: int64 (n_genes,), columns of `expression`.
    """
    mean = np.asarray(expression.mean(0))[0]
    variance = np.asarray(expression.multiply(expression).mean(0))[0] - mean**2
    others = np.setdiff1d(np.argsort(-variance, kind="stable")[:_OTHERS], genes)
    x = expression[:, np.concatenate([genes, others])].toarray().astype(np.float64)
    covariance = np.cov(x, rowvar=False)
    ridge = _RIDGE * covariance.diagonal().mean()
    inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))[: len(genes), : len(genes)]
    return np.asarray(-inverse / inverse.diagonal())
