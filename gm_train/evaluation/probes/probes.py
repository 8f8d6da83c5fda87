"""Probes: how well simple classifiers predict a label from frozen cell embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gm_train.evaluation.labels import Labels

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
    def usable(self) -> bool:
        """Whether there are at least two labels, enough cells to learn from, and cells to score on."""
        enough = round(SUBSAMPLE * len(self.train)) >= _FOLDS
        return enough and len(set(self.labels[self.train])) > 1 and len(self.held_out) > 0


def _linear(seed: int) -> GridSearchCV:
    """Standardised logistic regression; cross-validation on training cells chooses its penalty for each embedding."""
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    return GridSearchCV(regression, {"logisticregression__C": PENALTIES}, cv=folds)


@dataclass(frozen=True)
class FittedProbes:
    """Classifiers that were fitted on frozen embeddings of training cells.

    Attributes:
        by_name: "linear" and "knn" to a classifier of features, or to the one label of the cells it was fitted on.
    """

    by_name: dict[str, GridSearchCV | KNeighborsClassifier | str]

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
        knn = KNeighborsClassifier(min(NEIGHBOURS, len(chosen)), metric="cosine")
        probes = {"linear": _linear(seed), "knn": knn}
        return cls({name: probes[name].fit(features[chosen], labels) for name in names})

    def predict(self, features: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.str_]]:
        """Predict the labels of cells, (n_cells,), with each classifier from float32 (n_cells, n_features)."""
        return {
            name: np.full(len(features), probe) if isinstance(probe, str) else probe.predict(features)
            for name, probe in self.by_name.items()
        }


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
        Accuracy and macro-F1 (over the labels of the held-out cells) of each, in %.
    """
    truth = split.labels[split.held_out].astype(str)
    scores = {}
    for name, guess in FittedProbes.fit(features, split, seed, names).predict(features[split.held_out]).items():
        scores[f"{name}_accuracy"] = 100 * float(accuracy_score(truth, guess))
        f1 = f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0.0)
        scores[f"{name}_macro_f1"] = 100 * float(f1)
    return scores
