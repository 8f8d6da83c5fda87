"""A panel: fixed cells, hidden and divided once, on which a model is scored again and again while it trains."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.embedding.embed_cells import F32, embed_cells
from gm_train.evaluation.figures import BY_RANK, FREQUENCY, NEIGHBOURS, ORDER, PCA
from gm_train.evaluation.masked.frequency_controls import Frequency, FrequencyByRank
from gm_train.evaluation.masked.masked_genes import MaskedCells, Predictor, mask_cells, model_predictor, score_masked
from gm_train.evaluation.masked.masked_trials import MASK_RATE
from gm_train.evaluation.masked.order_control import OrderControl
from gm_train.evaluation.missing.missing_controls import fitted_guesses
from gm_train.evaluation.missing.missing_genes import DividedCells, Guess, divide, model_guess, score_missing
from gm_train.evaluation.panel.panel_cells import PanelCells
from gm_train.evaluation.principal_components import principal_components
from gm_train.evaluation.probes.probe_task import PROBE_SEEDS
from gm_train.evaluation.probes.probes import ProbeSplit, probe
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.cell_keys import cell_keys

#: PCA as a control here: a store has ranks and no counts.
PCA_OF_RANKS = "PCA of ranks"


@dataclass(frozen=True)
class PanelScore:
    """What one score of a panel is.

    Attributes:
        title: for tables and pictures.
        unit: of the score and of its axis.
        decimals: that are shown.
        more_is_better: whether a larger score is better.
    """

    title: str
    unit: str
    decimals: int
    more_is_better: bool

    def beyond(self, score: float, control: float) -> float:
        """By how much a score is better than that of a control; negative if it is worse."""
        return score - control if self.more_is_better else control - score


#: The scores of a panel by their keys: `panel_KEY` in `metrics.jsonl`, and the choices of `evaluation.best_by`.
PANEL_SCORES = {
    "masked": PanelScore("Masked genes", "cross-entropy, nats", 3, False),
    "missing": PanelScore("Missing genes", "cross-entropy, nats", 3, False),
    "knn": PanelScore("Cell types (nearest neighbours)", "accuracy, %", 1, True),
}

#: Score to control to value. A score that the panel cannot give is left out.
ControlScores = dict[str, dict[str, float]]


class Panel:
    """Hides and divides the cells of a panel, and scores models on them.

    One draw of hidden genes and one of missing genes, as of the first mask seed of an evaluation, are kept for all
    scores: the same weights have the same scores, and a curve moves with the weights alone.

    Args:
        cells: at least one of them held out, and one not.
        vocabulary_size: number of tokens, specials included.

    Attributes:
        split: of the labelled cells; None if there are no labels, or too few to probe.
        scores: keys of `PANEL_SCORES` that this panel gives.
    """

    def __init__(self, cells: PanelCells, vocabulary_size: int) -> None:
        self._cells, self._size = cells, vocabulary_size
        self._keys = cell_keys(0, cells.data_set, cells.row)
        self._train, self._held_out = np.flatnonzero(~cells.held_out), np.flatnonzero(cells.held_out)
        self._masked: MaskedCells = mask_cells(
            cells.tokens.take(self._held_out), self._keys[self._held_out], vocabulary_size, MASK_RATE
        )
        self._expression = cells.expression(vocabulary_size - FIRST_GENE)
        self._divided = self._divide(self._held_out)
        split = None if cells.labels is None else ProbeSplit.of(cells.labels, cells.held_out)
        self.split = split if split is not None and split.usable else None
        given = {
            "masked": bool(self._masked.hidden.any()),
            "missing": self._divided.n_cells > 0 and self._divide(self._train).n_cells > 0,
            "knn": self.split is not None,
        }
        self.scores = tuple(key for key in PANEL_SCORES if given[key])

    def _divide(self, cells: np.ndarray) -> DividedCells:
        return divide(self._cells.tokens.take(cells), self._expression[cells], self._keys[cells])

    def score(self, model: GeneMamba, precision: str = "fp32") -> dict[str, float]:
        """Score a model: a value for each of `scores`.

        Args:
            model: in evaluation mode, on the device to use.
            precision: "fp32", or "bf16" for autocast.
        """
        score: dict[str, Callable[[], float]] = {
            "masked": lambda: self._score_masked(model_predictor(model, precision)),
            "missing": lambda: self._score_missing(model_guess(model, precision)),
            "knn": lambda: self._score_knn(embed_cells(model, self._cells.tokens, precision=precision)),
        }
        return {key: score[key]() for key in self.scores}

    def score_controls(self) -> ControlScores:
        """Fit the controls on the training cells and score them on the held-out ones, as `score` does a model."""
        train = self._cells.tokens.take(self._train)
        controls: ControlScores = {}
        if "masked" in self.scores:
            predictors: dict[str, Predictor] = {
                ORDER: OrderControl(train, self._size, MASK_RATE),
                BY_RANK: FrequencyByRank(train, self._size),
                FREQUENCY: Frequency(train, self._size),
            }
            controls["masked"] = {name: self._score_masked(made) for name, made in predictors.items()}
        if "missing" in self.scores:
            guesses, _ = fitted_guesses(self._divide(self._train), self._size)
            names = {PCA: PCA_OF_RANKS, NEIGHBOURS: NEIGHBOURS, FREQUENCY: FREQUENCY}
            controls["missing"] = {shown: self._score_missing(guesses[name]) for name, shown in names.items()}
        if "knn" in self.scores:
            components = principal_components(self._expression, ~self._cells.held_out)
            controls["knn"] = {PCA_OF_RANKS: self._score_knn(components)}
        return controls

    def _score_masked(self, predictor: Predictor) -> float:
        return score_masked(predictor, self._masked).cross_entropy

    def _score_missing(self, guess: Guess) -> float:
        return score_missing(guess, self._divided).cross_entropy

    def _score_knn(self, features: F32) -> float:
        assert self.split is not None
        runs = [probe(features, self.split, seed, ("knn",))["knn_accuracy"] for seed in range(PROBE_SEEDS)]
        return float(np.mean(runs))


def best_controls(controls: ControlScores) -> dict[str, tuple[str, float]]:
    """The best control of each score, and its value."""
    best = {}
    for key, scores in controls.items():
        sign = -1 if PANEL_SCORES[key].more_is_better else 1
        best[key] = min(scores.items(), key=lambda item: sign * item[1])
    return best
