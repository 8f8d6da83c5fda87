"""Probes: how well simple classifiers predict a label from frozen cell embeddings."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from gm_train.evaluation.labels import Labels
from gm_train.evaluation.probes.type_scores import (
    expected_calibration_error,
    rare_auroc,
    rare_types,
    recall_by_support,
)

#: The probes: a logistic regression, and nearest neighbours by cosine.
PROBES = ("linear", "knn")
#: Neighbours that the kNN probe asks.
NEIGHBOURS = 10
#: Each probe seed fits on this share of the training cells, drawn anew.
SUBSAMPLE = 0.8
#: Inverse strengths of the logistic regression's penalty.
PENALTIES = (0.001, 0.01, 0.1, 1.0)
_FOLDS = 3


@dataclass(frozen=True)
class ProbeSplit:
    """The cells that a probe learns from, and those it is scored on.

    Attributes:
        labels: object (n_cells,), None where a cell has no label.
        train, held_out: int64, cell numbers.
        unseen: labels of held-out cells that no training cell has, with the number of such cells. They are left out of
            `held_out`: no probe could predict them.
        unlabelled: cells without a label, left out of both.
    """

    labels: Labels
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    unseen: dict[str, int]
    unlabelled: int

    @classmethod
    def of(cls, labels: Labels, is_held_out: npt.NDArray[np.bool_]) -> "ProbeSplit":
        """Split the labelled cells: labels are object (n_cells,), `is_held_out` is bool (n_cells,)."""
        labelled = np.array([label is not None for label in labels], dtype=np.bool_)
        train = np.flatnonzero(labelled & ~is_held_out)
        known = set(labels[train])
        held_out = np.flatnonzero(labelled & is_held_out)
        is_known = np.array([label in known for label in labels[held_out]], dtype=np.bool_)
        names, counts = np.unique(labels[held_out[~is_known]].astype(str), return_counts=True)
        unseen = dict(zip(names.tolist(), counts.tolist(), strict=True))
        return cls(labels, train, held_out[is_known], unseen, int((~labelled).sum()))

    @property
    def support(self) -> dict[str, int]:
        """The number of training cells of each label."""
        return dict(Counter(self.labels[self.train]))

    @property
    def usable(self) -> bool:
        """Whether a probe can be fitted and scored."""
        return self.obstacle is None

    @property
    def obstacle(self) -> str | None:
        """Why no probe can be fitted and scored; None if it can."""
        if not len(self.train):
            return "no training cell has a label"
        if len(kinds := set(self.labels[self.train])) == 1:
            return f"all training cells that have a label have the same one, {next(iter(kinds))!r}"
        if round(SUBSAMPLE * len(self.train)) < _FOLDS:
            return f"only {len(self.train)} training cells have a label"
        if not len(self.held_out):
            return "no held-out cell has a label of a training cell"
        return None


def _fit_linear(features: npt.NDArray[np.float32], labels: npt.NDArray[np.str_], seed: int) -> Pipeline:
    """Fit a standardised logistic regression; cross-validation on the same cells chooses its penalty.

    Args:
        features: float32 (n_cells, n_features).
        labels: str (n_cells,), of at least two kinds.
        seed: of the folds.
    """
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    halves = KFold(_FOLDS, shuffle=True, random_state=seed).split(features)
    # A fold may hold all cells of all labels but one: then its other cells have nothing to tell apart.
    folds = [(fit, score) for fit, score in halves if len(set(labels[fit])) > 1]
    # With several threads, each of many short loops waits for the slowest: 30 times as long where others use the cores.
    with threadpool_limits(1), warnings.catch_warnings():
        # At the precision of float32 its line search may find no further step: that is where it has converged.
        warnings.filterwarnings("ignore", r"lbfgs failed to converge after \d+ iteration\(s\) \(status=2\)")
        if not folds:
            return regression.fit(features, labels)
        search = GridSearchCV(regression, {"logisticregression__C": PENALTIES}, cv=folds)
        return search.fit(features, labels).best_estimator_


@dataclass(frozen=True)
class FittedProbes:
    """Classifiers that were fitted on frozen embeddings of training cells.

    Attributes:
        by_name: "linear" and "knn" to a classifier of features, or to the one label of the cells it was fitted on.
    """

    by_name: dict[str, Pipeline | KNeighborsClassifier | str]

    @classmethod
    def fit(
        cls, features: npt.NDArray[np.float32], split: ProbeSplit, seed: int, names: Sequence[str] = PROBES
    ) -> "FittedProbes":
        """Fit a logistic regression on standardised features and a kNN by cosine.

        Args:
            features: float32 (n_cells, n_features).
            split: labels and cells; those held out are not looked at.
            seed: of the subsample of training cells.
            names: which of `PROBES` to fit.
        """
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(split.train)[: max(2, round(SUBSAMPLE * len(split.train)))]
        labels = split.labels[chosen].astype(str)
        if len(set(labels)) == 1:
            return cls(dict.fromkeys(names, labels[0]))
        fitted: dict[str, Pipeline | KNeighborsClassifier | str] = {}
        if "linear" in names:
            fitted["linear"] = _fit_linear(features[chosen], labels, seed)
        if "knn" in names:
            knn = KNeighborsClassifier(min(NEIGHBOURS, len(chosen)), metric="cosine")
            fitted["knn"] = knn.fit(features[chosen], labels)
        return cls(fitted)

    def predict(self, features: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.str_]]:
        """Predict the labels of cells, (n_cells,), with each classifier from float32 (n_cells, n_features)."""
        return {
            name: np.full(len(features), probe) if isinstance(probe, str) else probe.predict(features)
            for name, probe in self.by_name.items()
        }

    def probabilities(self, features: npt.NDArray[np.float32]) -> tuple[list[str], npt.NDArray[np.float64]]:
        """The labels that the linear probe knows, and their probabilities for cells: float64 (n_cells, n_labels).

        The linear probe must be among those fitted.

        Args:
            features: float32 (n_cells, n_features).
        """
        linear = self.by_name["linear"]
        if isinstance(linear, str):
            return [linear], np.ones((len(features), 1))
        return linear.classes_.tolist(), linear.predict_proba(features)


def probe(
    features: npt.NDArray[np.float32], split: ProbeSplit, seed: int, names: Sequence[str] = PROBES
) -> dict[str, float]:
    """Fit probes and score them on the held-out cells.

    Held-out cells count as wrong if their label is not in the subsample by chance.

    Args:
        features: float32 (n_cells, n_features).
        split: labels and cells.
        seed: of the subsample of training cells.
        names: which of `PROBES`.

    Returns:
        Of each probe ("linear_" and "knn_"), in %: `accuracy`; `macro_f1` over the labels of the held-out cells; and
        `recall_N`, the mean recall of the labels in the bin that begins with N training cells. Of the linear probe:
        `linear_ece`, the expected calibration error in %; and `rare_auroc` (0 to 1), if there are rare labels.
    """
    truth, support = split.labels[split.held_out].astype(str), split.support
    features_held_out = features[split.held_out]
    fitted = FittedProbes.fit(features, split, seed, names)
    scores = {}
    for name, guess in fitted.predict(features_held_out).items():
        scores[f"{name}_accuracy"] = 100 * float(accuracy_score(truth, guess))
        f1 = f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0.0)
        scores[f"{name}_macro_f1"] = 100 * float(f1)
        by_bin = recall_by_support(truth, guess, support)
        scores |= {f"{name}_recall_{start}": recall for start, recall in by_bin.items()}
    if "linear" not in names:
        return scores
    classes, probabilities = fitted.probabilities(features_held_out)
    scores["linear_ece"] = 100 * expected_calibration_error(truth, probabilities, classes)
    if rare := rare_types(truth, support):
        scores["rare_auroc"] = rare_auroc(truth, probabilities, classes, rare)
    return scores
