"""Whether it is known which gene sets shaped a model's weights: pairs of these must not count as held out."""

from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from gm_train.config.schema import ObjectiveConfig


def refuse_unknown_sets(gene_sets: Path, objective: ObjectiveConfig, identity: dict[str, Any]) -> None:
    """Refuse gene sets that are to be scored as not trained, if those of the training are not known.

    Args:
        gene_sets: the sets.
        objective: of the checkpoint. Its `pathways` is empty if the weights were imported.
        identity: of the checkpoint: the hash of the training's sets, and whether the weights began elsewhere.

    Raises:
        DataError: the run began with weights of another model, or the weights were imported and may have seen sets.
    """
    start = f"--gene-sets {gene_sets}: pairs that the model was trained on cannot be left out, because"
    if identity.get("init_from"):
        raise DataError(
            f"{start} the run began with weights of another model (model.init_from), which other gene sets may have "
            "shaped: leave out --gene-sets, or evaluate a model that began with random weights"
        )
    if not identity["store"]:
        raise DataError(
            f"{start} the weights were imported in the published layout, which does not tell their training: leave "
            "out --gene-sets"
        )
    if objective.gamma != 0 and identity["pathways"] and not objective.pathways:
        raise DataError(
            f"{start} the weights were imported without the gene sets of their training: leave out --gene-sets, or "
            "evaluate the run that they were exported from"
        )
