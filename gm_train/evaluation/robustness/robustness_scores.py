"""Score an embedding under disturbed counts: accuracy of probes, what is kept of it, and movement."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from gm_train.embedding.embed_cells import F32
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.probes.probes import FittedProbes, ProbeSplit
from gm_train.evaluation.robustness.movement import movement

#: Key of a probe to its name.
PROBES = {"knn": "nearest neighbours", "linear": "a linear probe"}
#: Key of a disturbance to the tokens of the held-out cells and their expression, float32 (n_held_out, n_genes).
Disturbed = dict[str, tuple[Ragged, scipy.sparse.csr_matrix]]


@dataclass(frozen=True)
class Representation:
    """A way to embed cells.

    Attributes:
        undisturbed: vectors of all cells of the evaluation, float32 (n_cells, n_features).
        embed: takes tokens and expression of cells, and returns their vectors, float32 (n, n_features).
    """

    undisturbed: F32
    embed: Callable[[Ragged, scipy.sparse.csr_matrix], F32]


def score_robustness(
    embedding: Representation,
    numbers: npt.NDArray[np.int64],
    split: ProbeSplit | None,
    disturbed: Disturbed,
    seed: int,
) -> dict[str, float]:
    """Score one embedding under each disturbance.

    Cells without a gene count as wrong, and as at distance 1 from themselves. For movement, the mean vector of the
    undisturbed training cells is taken off every vector: where all vectors have a direction in common, cosines show
    little else.

    Args:
        embedding: what is scored.
        numbers: int64 (n_held_out,), ascending, the held-out cells.
        split: labels and cells of the probes; None scores movement alone.
        disturbed: the held-out cells in the order of `numbers`.
        seed: of the probes' subsample.

    Returns:
        For each disturbance `moved_KEY` and, with probes, `knn_KEY` and `linear_KEY`, accuracies in %; `moved`, their
        mean; `knn_useful`, the accuracy on undisturbed cells; and `knn_robust`, the mean accuracy under disturbances in
        % of it (0 if that is 0); likewise for `linear`.
    """
    held_out = embedding.undisturbed[numbers]
    centre = np.delete(embedding.undisturbed, numbers, axis=0).mean(0, dtype=np.float64)
    probes = FittedProbes.fit(embedding.undisturbed, split, seed) if split is not None else None

    def accuracies(features: F32, empty: npt.NDArray[np.bool_], key: str) -> dict[str, float]:
        if probes is None or split is None:
            return {}
        at = np.searchsorted(numbers, split.held_out)
        truth = split.labels[split.held_out].astype(str)
        guesses = probes.predict(features[at])
        return {f"{n}_{key}": float(100 * ((guess == truth) & ~empty[at]).mean()) for n, guess in guesses.items()}

    scores = accuracies(held_out, np.zeros(len(numbers), np.bool_), "useful")
    for key, (tokens, expression) in disturbed.items():
        empty = tokens.lengths == 0
        features = np.where(empty[:, None], np.float32(0), embedding.embed(tokens, expression))
        scores |= accuracies(features, empty, key)
        scores[f"moved_{key}"] = movement(held_out - centre, np.where(empty[:, None], 0, features - centre))
    scores["moved"] = float(np.mean([scores[f"moved_{key}"] for key in disturbed]))
    for name in PROBES if probes is not None else ():
        useful, kept = scores[f"{name}_useful"], np.mean([scores[f"{name}_{key}"] for key in disturbed])
        scores[f"{name}_robust"] = float(100 * kept / useful) if useful else 0.0
    return scores
