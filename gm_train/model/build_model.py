"""Build the model of a run: with random weights, and with a classifier if the run learns a label."""

from gm_train.config.schema import Config
from gm_train.model.classes import Classes
from gm_train.model.classifier import Classifier
from gm_train.model.genemamba import GeneMamba


def build_model(config: Config, vocabulary_size: int, classes: Classes | None = None) -> GeneMamba:
    """Build a model, and say which of its weights are trained.

    The classifier's weights are drawn last: the others are those of a model without it.

    Args:
        config: of the run.
        vocabulary_size: number of tokens.
        classes: what a run with `task.name=classify` learns; None for other runs.
    """
    model = GeneMamba(config.model, vocabulary_size)
    if classes is not None:
        task = config.task
        model.classifier = Classifier(
            config.model.d_model, classes.weights(task.balanced), task.head_layers, task.head_width
        )
        # The output layer is kept for what is done with the weights later, but predicts nothing now.
        model.output.requires_grad_(False)
        if task.frozen:
            model.requires_grad_(False)
            model.classifier.requires_grad_(True)
    return model
