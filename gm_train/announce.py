"""What a run says of itself before it trains."""

import logging
import sys

import torch

from data_shards.pool import Plan
from data_shards.reader import StoreReader
from data_shards.stream import Lanes
from data_shards.vocabulary import FIRST_GENE
from gm_train.batches import Recipe, make_examples
from gm_train.checkpoint import Checkpoint
from gm_train.config import Config
from gm_train.datamodule import CellDataModule
from gm_train.model.attention import attention_kernel
from gm_train.model.kernels import choose_kernel
from gm_train.module import GeneMambaModule
from gm_train.ranks import Ranks

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


def kernel_of(config: Config, device: torch.device) -> tuple[str, str]:
    """What computes the scan, or the transformer's attention, on a device, and why.

    Raises:
        DataError: `model.kernel` asks for what cannot run there.
    """
    model = config.model
    if model.arch == "transformer":
        dtype = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
        return attention_kernel(device, dtype, model.d_model // model.n_heads)
    return choose_kernel(model.kernel, device)


def _announce_coverage(config: Config, reader: StoreReader, recipe: Recipe, plan: Plan) -> None:
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
