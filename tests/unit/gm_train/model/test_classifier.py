"""The classifier: what it is built on, what is trained, and that a cell's logits do not depend on its row."""

import pytest
import torch

from gm_train.config.schema import Config, TaskConfig
from gm_train.model.build_model import build_model
from gm_train.model.classes import Calibration, Classes
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from gm_train.objective.loss import target_logits
from tests.support.batches import batch_of
from tests.support.small_models import VOCABULARY, random_model, small_config

CLASSES = Classes("kind", ("a", "b", "c"), (10, 30, 2))


def built(**task: object) -> GeneMamba:
    config = Config(model=small_config(), task=TaskConfig("classify", "kind", **task))  # type: ignore[arg-type]
    torch.manual_seed(3)
    return build_model(config, VOCABULARY, CLASSES)


def test_the_model_below_begins_as_without_a_classifier() -> None:
    torch.manual_seed(3)
    plain = build_model(Config(model=small_config()), VOCABULARY).state_dict()
    state = built(head_layers=3, head_width=7).state_dict()
    assert {name: tensor.tolist() for name, tensor in state.items() if not name.startswith("classifier.")} == {
        name: tensor.tolist() for name, tensor in plain.items()
    }
    shapes = [tuple(tensor.shape) for name, tensor in state.items() if name.startswith("classifier.")]
    assert shapes == [(7, 12), (7,), (7, 7), (7,), (3, 7), (3,)]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_trained(frozen: bool) -> None:
    trained = {name.split(".")[0] for name, p in built(frozen=frozen).named_parameters() if p.requires_grad}
    assert trained == ({"classifier"} if frozen else {"classifier", "embedding", "stack", "norm"})


def test_balanced_classes_weigh_alike_and_cells_one_on_average() -> None:
    weights = built().classifier.class_weights.tolist()  # type: ignore[union-attr]
    sums = [weight * n for weight, n in zip(weights, CLASSES.n_train, strict=True)]
    assert sums == pytest.approx([sum(CLASSES.n_train) / 3] * 3)
    assert built(balanced=False).classifier.class_weights.tolist() == [1, 1, 1]  # type: ignore[union-attr]


def test_logits_of_labelled_cells_are_those_of_each_cell_alone() -> None:
    model = random_model(small_config(), 1)
    model.classifier = built(head_layers=2, head_width=5).classifier
    model.double()
    # Rows with 3, 1 and 2 cells; some have no label.
    cells = [[5, 6, 7], [8, 9], [4], [10, 11, 12, 13], [14], [15, 16, 17]]
    batch = batch_of([cells[:3], cells[3:4], cells[4:]], labelled=[0, 2, 3, 5], length=8)
    with torch.no_grad():
        logits = target_logits(model, model(batch.input_ids, batch.segment), batch)
        for row, number in zip(logits, [0, 2, 3, 5], strict=True):
            ids = torch.tensor([cells[number]])
            embedding = cell_embeddings(model(ids, torch.ones_like(ids)), torch.ones_like(ids))
            assert model.classifier is not None
            torch.testing.assert_close(row, model.classifier(embedding)[0], rtol=1e-10, atol=1e-12)


def test_classes_survive_json() -> None:
    classes = CLASSES.with_calibration(Calibration(0.5, None, 0.1, 4, 0, 0))
    assert Classes.from_json(classes.to_json()) == classes
    assert classes.hash == CLASSES.hash
    assert classes.hash != Classes("kind", ("a", "b", "c"), (10, 30, 3)).hash
