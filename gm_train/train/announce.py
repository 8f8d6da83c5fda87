"""Print what a run is before it trains."""

import logging
import sys

from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import Checkpoint
from gm_train.config.micro_rows import few_tokens
from gm_train.config.schema import Config, ObjectiveConfig
from gm_train.loading.rank_batches import RankBatches
from gm_train.model.classes import Classes
from gm_train.model.compile import compiles
from gm_train.model.kernels.scan_kernels import kernel_of
from gm_train.objective.batches import make_examples
from gm_train.objective.recipe import Recipe
from gm_train.optim import learning_rate
from gm_train.ranks.ranks import Ranks
from gm_train.train.module import GeneMambaModule

log = logging.getLogger(__name__)

_THIN_PAIRS = 1.0  # with fewer positive pairs per cell L_pathway is mostly noise
_COVERAGE_ROWS = 64  # rows that pairs and tokens are counted on


def announce(
    config: Config,
    reader: StoreReader,
    module: GeneMambaModule,
    batches: RankBatches,
    checkpoint: Checkpoint | None,
    strategy: str,
    compile_setting: bool | None,
    ranks: Ranks,
) -> None:
    """Print the store, the model, the step, the ranks and, if there is one, the checkpoint that is resumed.

    Args:
        config: of the run.
        reader: the open store.
        module: holds the model, whole.
        batches: hold the recipe and the plan of rows.
        checkpoint: the one to resume from, or None.
        strategy: its name and why it was chosen.
        compile_setting: `trainer.compile` under this strategy.
        ranks: this process among the others.
    """
    manifest = reader.manifest
    n_train = sum(data_set.n_train for data_set in manifest.datasets)
    n_validation = sum(data_set.n_validation for data_set in manifest.datasets)
    print(
        f"store {reader.path}: {len(manifest.datasets)} data sets, {n_train:,} training and {n_validation:,} "
        f"validation cells, {batches.recipe.vocabulary_size:,} tokens in the vocabulary"
    )
    model = config.model
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    variant = {
        "bimamba": f"{model.aggregation}, norm {model.norm}",
        "mamba": f"norm {model.norm}",
        "transformer": f"{model.n_heads} heads, feed-forward {model.d_ff}",
    }.get(model.arch, f"norm {model.norm}")
    kernel, why = kernel_of(config, ranks.device())
    print(
        f"model {model.arch} {model.n_layers} x {model.d_model}, {variant}: {n_parameters:,} parameters; "
        f"kernel {kernel} ({why})"
    )
    if compiles(compile_setting, ranks.device().type, ("cuda",) if kernel == "mamba_ssm" else ()):
        print("compiling the blocks at the first step: a minute or more without output")
    rows = config.data.step_rows
    print(
        f"step: {rows} rows of {config.data.row_length} tokens from {config.data.lanes} lanes; "
        f"a rank's forward pass has {batches.micro_rows} rows"
    )
    if ranks.device().type == "cuda" and (warning := few_tokens(config, ranks.world_size)) is not None:
        log.warning(warning)
    nodes = f"{ranks.n_nodes} node{'s' if ranks.n_nodes > 1 else ''}"
    print(f"ranks: {ranks.world_size} on {nodes}, {ranks.device().type}; strategy {strategy}")
    if batches.recipe.cell_classes is None:
        _announce_objective(config.objective)
    if batches.recipe.pathways is not None:
        _announce_coverage(config, reader, batches.recipe, batches.plan)
    if batches.recipe.cell_classes is not None:
        _announce_classes(config, batches.recipe.cell_classes.classes)
    if checkpoint is not None:
        print(f"resuming {config.run.dir} from step {checkpoint.step:,} ({checkpoint.path.name})")
        _announce_end_of_schedule(config, checkpoint)
    # Flushed, so that a job's log has it before the output of libraries; DeepSpeed loses what is still buffered.
    sys.stdout.flush()


def warn_of_other_kernels(kernels: list[tuple[str, str]]) -> None:
    """Log a warning if ranks compute with other kernels than rank 0: the slowest one decides the speed.

    Args:
        kernels: for each rank its kernel and the reason, as `kernel_of` returns them.
    """
    others = [rank for rank, (kernel, _) in enumerate(kernels) if kernel != kernels[0][0]]
    if others:
        kernel, why = kernels[others[0]]
        log.warning(
            "%d of %d ranks do not compute with %s as rank 0 does: rank %d computes with %s (%s)",
            *(len(others), len(kernels), kernels[0][0], others[0], kernel, why),
        )


def _announce_objective(objective: ObjectiveConfig) -> None:
    """Print the objective of the language loss, and which given settings have no effect on it."""
    meaning = {
        "missing": ": each of two parts of a cell names the genes of the other",
        "masked": f": {objective.mask_rate:.0%} of a cell's genes are hidden",
        "next_token": ": each gene is named from those before it",
    }
    print(f"objective {objective.language}{meaning.get(objective.language, '')}")
    if objective.language != "masked":
        usual = ObjectiveConfig()
        for key in ("mask_rate", "random_rate"):
            if getattr(objective, key) != getattr(usual, key):
                print(f"objective.{key} has no effect: it is for objective.language=masked")


def _announce_classes(config: Config, classes: Classes) -> None:
    """Print what is learned, and what of the model learns it."""
    task = config.task
    smallest, largest = min(classes.n_train), max(classes.n_train)
    what = "the classifier alone" if task.frozen else "the classifier and the model below it"
    weight = "classes weigh alike" if task.balanced else "cells weigh alike"
    print(
        f"learning {classes.label!r}: {len(classes.names)} classes of {smallest:,} to {largest:,} training cells; "
        f"training {what}; {weight}"
    )


def _announce_end_of_schedule(config: Config, checkpoint: Checkpoint) -> None:
    """Print where the schedule ends, if the rest of a resumed run goes beyond it: its first start fixed its length."""
    last = config.optim.schedule_steps
    assert last is not None
    if max(last, checkpoint.step) < config.trainer.max_steps:
        rate = learning_rate(last, config.optim)
        print(f"steps after {last:,} train at the final learning rate, {rate:g}: optim.schedule_steps ends there")


def _announce_coverage(config: Config, reader: StoreReader, recipe: Recipe, plan: RowPlan) -> None:
    """Print how many genes and tokens the gene sets cover, and the positive pairs per cell, in the first rows."""
    assert recipe.pathways is not None
    rows = Lanes(reader, plan, {0: (0, 0)}).take(_COVERAGE_ROWS)
    annotated = recipe.pathways.annotated
    examples = make_examples(rows, recipe)
    pairs = examples.positive.sum() / 2 / examples.n_cells
    print(
        f"pathways {config.objective.pathways}: {recipe.pathways.n_sets} sets in use, "
        f"{annotated[FIRST_GENE:].mean():.1%} of genes, {annotated[rows.tokens].mean():.1%} of tokens, "
        f"{pairs:.1f} drawn positive pairs a cell"
    )
    if pairs < _THIN_PAIRS:
        log.warning("fewer than %g positive pairs a cell: L_pathway is mostly noise; use broader sets", _THIN_PAIRS)
