"""Sets of the training that are not known refuse those that are given."""

from pathlib import Path

import pytest

from data_shards.errors import DataError
from gm_train.config.schema import ObjectiveConfig
from gm_train.evaluation.pairs.known_sets import refuse_unknown_sets

GIVEN = Path("given.gmt")


@pytest.mark.parametrize(
    ("objective", "identity", "message"),
    [
        (ObjectiveConfig(pathways="a.gmt"), {"init_from": {"weights": "b" * 64}}, "began with weights of another"),
        (ObjectiveConfig(), {"store": ""}, "imported in the published layout"),
        (ObjectiveConfig(gamma=0.1), {"pathways": "c" * 64}, "imported without the gene sets of their training"),
    ],
)
def test_weights_of_unknown_sets_are_refused(
    objective: ObjectiveConfig, identity: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=rf"--gene-sets given\.gmt: pairs .* {message}.*leave out --gene-sets"):
        refuse_unknown_sets(GIVEN, objective, {"store": "a" * 64, "pathways": ""} | identity)


def test_known_sets_and_a_weight_of_zero_are_fine() -> None:
    known = {"store": "a" * 64, "pathways": "c" * 64}
    refuse_unknown_sets(GIVEN, ObjectiveConfig(gamma=0.1, pathways="a.gmt"), known)
    refuse_unknown_sets(GIVEN, ObjectiveConfig(gamma=0), known)  # imported; its sets were not used
    refuse_unknown_sets(GIVEN, ObjectiveConfig(gamma=0.1), known | {"pathways": ""})
