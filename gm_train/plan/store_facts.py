"""What a plan needs to know of the store: its vocabulary, its training cells, and how they fill rows."""

from dataclasses import dataclass

from data_shards.errors import DataError
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan, choose_pool_blocks
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.schema import Config

_PUBLISHED_VOCABULARY = 25_426
_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class StoreFacts:
    """Facts of a store.

    Attributes:
        vocabulary_size: number of tokens.
        n_cells: training cells of a pass, each as often as `data.weights` says; None without a store.
        cells_per_row, tokens_per_row: means over packed rows; without a store, rows are taken to be full.
        pool_tokens: tokens of the pool of a lane.
        assumed: what was assumed for want of a store; empty if there is one.
    """

    vocabulary_size: int
    n_cells: int | None
    cells_per_row: float
    tokens_per_row: float
    pool_tokens: float
    assumed: str


def read_store_facts(config: Config) -> StoreFacts:
    """Read the facts of `data.store`, packing a few of its rows; without it, assume the published vocabulary."""
    data = config.data
    try:
        reader = StoreReader(data.store)
    except DataError as error:
        why = f"{str(error).splitlines()[0]}; assumed: {_PUBLISHED_VOCABULARY:,} tokens as published, full rows"
        return StoreFacts(_PUBLISHED_VOCABULARY, None, 1.0, float(data.row_length), float(1 << 20), why)
    manifest = reader.manifest
    pool_blocks = data.pool_blocks or choose_pool_blocks(manifest)
    plan = RowPlan(config.run.seed, data.lanes, pool_blocks, data.group_cells, data.row_length, dict(data.weights))
    if manifest.top_k > data.row_length:
        raise DataError(
            f"{reader.path}: cells have up to {manifest.top_k:,} tokens, rows have data.row_length="
            f"{data.row_length:,}: raise data.row_length"
        )
    rows = Lanes(reader, plan, {0: (0, 0)}).take(_SAMPLED_ROWS)
    n_cells = sum(entry.n_train * data.weights.get(entry.name, 1) for entry in manifest.datasets)
    return StoreFacts(
        vocabulary_size=manifest.n_genes + FIRST_GENE,
        n_cells=n_cells,
        cells_per_row=len(rows.lengths) / len(rows),
        tokens_per_row=float(rows.lengths.sum()) / len(rows),
        pool_tokens=pool_blocks * manifest.block_cells * manifest.n_tokens / manifest.n_cells,
        assumed="",
    )
