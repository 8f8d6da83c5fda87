"""What a run says of itself before it trains."""

import logging
import sys

from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import Checkpoint
from gm_train.config.schema import Config
from gm_train.loading.datamodule import CellDataModule
from gm_train.model.scan_kernels import kernel_of
from gm_train.objective.batches import make_examples
from gm_train.objective.recipe import Recipe
from gm_train.ranks.ranks import Ranks
from gm_train.train.module import GeneMambaModule

log = logging.getLogger(__name__)

_THIN_PAIRS = 1.0  # fewer positive pairs a cell than this make L_pathway mostly noise
_COVERAGE_ROWS = 64


def announce(
    config: Config,
    reader: StoreReader,
    module: GeneMambaModule,
    data: CellDataModule,
    checkpoint: Checkpoint | None,
    strategy: str,
    ranks: Ranks,
) -> None:
    manifest = reader.manifest
    n_train = sum(data_set.n_train for data_set in manifest.datasets)
    n_validation = sum(data_set.n_validation for data_set in manifest.datasets)
    print(
        f"store {reader.path}: {len(manifest.datasets)} data sets, {n_train:,} training and {n_validation:,} "
        f"validation cells, {data.recipe.vocabulary_size:,} tokens in the vocabulary"
    )
    model = config.model
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    variant = {
        "bimamba": f"{model.aggregation}, norm {model.norm}",
        "mamba": f"norm {model.norm}",
        "transformer": f"{model.n_heads} heads, feed-forward {model.d_ff}",
    }[model.arch]
    kernel, why = kernel_of(config, ranks.device())
    print(
        f"model {model.arch} {model.n_layers} x {model.d_model}, {variant}: {n_parameters:,} parameters; "
        f"kernel {kernel} ({why})"
    )
    if config.trainer.compile:
        print("compiling the blocks at the first step: a minute or more without a word")
    rows = config.data.lanes * config.data.rows_per_lane
    print(f"step: {rows} rows of {config.data.row_length} tokens from {config.data.lanes} lanes")
    nodes = f"{ranks.n_nodes} node{'s' if ranks.n_nodes > 1 else ''}"
    print(f"ranks: {ranks.world_size} on {nodes}, {ranks.device().type}; strategy {strategy}")
    if data.recipe.pathways is not None:
        _announce_coverage(config, reader, data.recipe, data.plan)
    if checkpoint is not None:
        print(f"resuming {config.run.dir} from step {checkpoint.step:,} ({checkpoint.path.name})")
    # In a job's log it stands before what libraries say, and DeepSpeed loses what is still buffered.
    sys.stdout.flush()


def _announce_coverage(config: Config, reader: StoreReader, recipe: Recipe, plan: RowPlan) -> None:
    """Print how much of the genes, the tokens and the cells L_pathway can speak of, on the first rows of the data."""
    assert recipe.pathways is not None
    rows = Lanes(reader, plan, {0: (0, 0)}).take(_COVERAGE_ROWS)
    annotated = recipe.pathways.annotated
    examples = make_examples(rows, recipe)
    n_cells = len(examples.row_of_cell)
    pairs = examples.positive.sum() / 2 / n_cells
    print(
        f"pathways {config.objective.pathways}: {recipe.pathways.n_sets} sets in use, "
        f"{annotated[FIRST_GENE:].mean():.1%} of genes, {annotated[rows.tokens].mean():.1%} of tokens, "
        f"{pairs:.1f} drawn positive pairs a cell"
    )
    if pairs < _THIN_PAIRS:
        log.warning("the gene sets are thin on these cells: L_pathway will say little; use broader sets")
