"""Choose regulated pairs and random pairs like them, and score both: detection, direction, and how sure both are."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from gm_train.evaluation.figures import Figure
from gm_train.evaluation.pairs.matched_pairs import FREQUENCY_CLASSES

#: Pairs that are scored, at most, and targets of one regulator among them, so that none has most of the pairs.
MAX_PAIRS, MAX_TARGETS = 200, 20
#: Resamples of the bootstrap.
RESAMPLES = 500
#: Columns of expression that a regression sees besides the genes of the pairs, those that vary most.
_OTHERS = 1_000
#: Ridge, in units of the variance of a gene.
_RIDGE = 0.1
_TRIES = 50

BOOL = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def choose_pairs(pairs: I64, generator: np.random.Generator) -> I64:
    """Draw a pair of each regulator in turn, until there are enough: int64 (n, 2), ascending.

    Args:
        pairs: int64 (n_all, 2), regulator and target.
        generator: draws.
    """
    shuffled = pairs[generator.permutation(len(pairs))]
    by_regulator = np.argsort(shuffled[:, 0], kind="stable")
    of_regulator = shuffled[by_regulator, 0]
    turn = np.arange(len(pairs)) - np.searchsorted(of_regulator, of_regulator)
    place = generator.permutation(len(pairs))  # which regulators come in the last turn
    order = np.lexsort((place, turn))
    found = shuffled[by_regulator][order[turn[order] < MAX_TARGETS][:MAX_PAIRS]]
    return np.asarray(found[np.lexsort((found[:, 1], found[:, 0]))])


def draw_unrelated(
    pairs: I64, known: I64, frequency: F64, can_ask: Callable[[I64], BOOL], generator: np.random.Generator
) -> I64:
    """Draw for each pair another target, of another pair, that the regulator does not regulate.

    The regulator stays the same. The other target is in the same fifth of the targets by how many cells have them, and
    is drawn as often as it has regulators. It is not linked with the regulator in either direction, directly or through
    one gene.

    Args:
        pairs: int64 (n, 2), tokens of regulators and targets.
        known: int64 (n_known, 2), all pairs that are known, also those without a direction.
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
        detection: how often a regulated pair has a higher score than the unrelated pair that it is matched with, of the
            same regulator; a tie counts as half, and 50 is chance.
        direction: regulated pairs of which the regulator has the higher score on the target than the other way round; a
            tie counts as half.
        resampled: float64 (n, 2), both in resamples of the pairs.
    """

    detection: float
    direction: float
    resampled: F64

    def reversed(self, detection: bool, direction: bool) -> "DirectedScore":
        """The score of the same scorer with the other sign, in one column or in both."""
        resampled = np.where([detection, direction], 100 - self.resampled, self.resampled)
        return DirectedScore(
            100 - self.detection if detection else self.detection,
            100 - self.direction if direction else self.direction,
            resampled,
        )


def score_directed(forward: F64, backward: F64, unrelated: F64, pairs: I64) -> DirectedScore:
    """Score the scores of pairs, by one scorer.

    Pairs that share a regulator or a target are not independent. So regulators are drawn anew, and so are targets, and
    a pair counts as often as its regulator was drawn times as often as its target was (the pigeonhole bootstrap, Owen
    2007, doi 10.1214/07-AOAS122). The few resamples without any pair are left out.

    Args:
        forward: float64 (n,), what it says of the regulator's effect on the target.
        backward: float64 (n,), what it says of the target's effect on the regulator.
        unrelated: float64 (n,), what it says of the pair that is matched with each of them.
        pairs: int64 (n, 2), tokens of the regulator and the target.
    """
    generator = np.random.default_rng(0)
    weights = np.ones((RESAMPLES, len(pairs)))
    for genes in pairs.T:
        _, of_pair = np.unique(genes, return_inverse=True)
        n = int(of_pair.max()) + 1
        weights *= generator.multinomial(n, np.full(n, 1 / n), RESAMPLES)[:, of_pair]
    weights = weights[weights.any(1)]
    scores = 100 * np.stack([_above(forward, unrelated), _above(forward, backward)], axis=1)
    detection, direction = scores.mean(0)
    return DirectedScore(float(detection), float(direction), weights @ scores / weights.sum(1, keepdims=True))


def better_signs(runs: list[DirectedScore]) -> list[DirectedScore]:
    """Reverse the columns of a scorer without a sign of its own whose mean over the runs is below chance.

    Args:
        runs: of one scorer, one a seed.
    """
    columns = ([run.detection for run in runs], [run.direction for run in runs])
    detection, direction = (bool(np.mean(values) < 50) for values in columns)
    return [run.reversed(detection, direction) for run in runs]


def summarise(runs: list[DirectedScore]) -> tuple[dict[str, Figure], dict[str, list[float]]]:
    """For each column the mean over runs with the spread of all resamples, and the 95 % interval of these."""
    figures: dict[str, Figure] = {}
    intervals: dict[str, list[float]] = {}
    resampled = np.concatenate([run.resampled for run in runs])
    for place, column in enumerate(("detection", "direction")):
        mean = np.mean([getattr(run, column) for run in runs])
        figures[column] = {"mean": float(mean), "sd": float(resampled[:, place].std(ddof=1))}
        intervals[column] = [float(bound) for bound in np.percentile(resampled[:, place], [2.5, 97.5])]
    return figures, intervals


def _above(a: F64, b: F64) -> F64:
    """1 where a is above b, 0.5 where they are equal, else 0."""
    return np.asarray((a > b) + 0.5 * (a == b))


def regression_effects(expression: scipy.sparse.csr_matrix, genes: I64) -> F64:
    """Ridge regressions of each gene on all others: float64 (n_genes, n_genes), of the first gene on the second.

    With S the covariance over cells and K = (S + l I)^-1, the coefficient of i in the regression of j on all others is
    -K_ij / K_jj. The others are these genes and those that vary most. All are standardised, so the ridge l means the
    same for each, and S is a correlation matrix.

    Args:
        expression: float32 (n_cells, n_all_genes).
        genes: int64 (n_genes,), columns of `expression`.
    """
    mean = np.asarray(expression.mean(0))[0]
    variance = np.asarray(expression.multiply(expression).mean(0))[0] - mean**2
    others = np.setdiff1d(np.argsort(-variance, kind="stable")[:_OTHERS], genes)
    x = expression[:, np.concatenate([genes, others])].toarray().astype(np.float64)
    deviation = x.std(0, ddof=1)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)  # a constant gene stays 0, and so do its effects
    covariance = x.T @ x / (len(x) - 1)
    inverse = np.linalg.inv(covariance + _RIDGE * np.eye(len(covariance)))[: len(genes), : len(genes)]
    return np.asarray(-inverse / inverse.diagonal())
