"""Open the data that a configuration names: the store, its tokenizer, the gene sets and the labels."""

from dataclasses import dataclass

from data_shards.errors import DataError
from data_shards.rows.pool import choose_pool_blocks
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import Config
from gm_train.loading.read_classes import read_cell_classes
from gm_train.objective.pathway import pathways_of
from gm_train.objective.recipe import Recipe


@dataclass(frozen=True)
class OpenData:
    """The data of a run.

    Attributes:
        reader: the open store.
        tokenizer: the store's vocabulary and medians.
        recipe: what turns rows into training examples.
    """

    reader: StoreReader
    tokenizer: Tokenizer
    recipe: Recipe


def open_data(config: Config) -> OpenData:
    """Open the store and the gene sets, and set `data.pool_blocks` if the configuration leaves it open.

    Args:
        config: checked; changed in place, so that what is recorded of the run holds the computed number.

    Raises:
        DataError: the store or the gene sets cannot be read, the store does not fit the configuration, or its labels
            cannot be learned.
    """
    reader = StoreReader(config.data.store, config.data.cache_mb << 20, config.data.max_damaged_chunks)
    tokenizer = Tokenizer.load(reader.path)
    _check_store(config, reader, tokenizer)
    config.data.pool_blocks = config.data.pool_blocks or choose_pool_blocks(reader.manifest)
    pathways = pathways_of(config.objective, tokenizer)
    learns_label = config.task.name == "classify"
    cell_classes = read_cell_classes(reader, config.task, config.data.weights) if learns_label else None
    recipe = Recipe(
        config.objective, config.run.seed, tokenizer.vocabulary.size, config.data.row_length, pathways, cell_classes
    )
    return OpenData(reader, tokenizer, recipe)


def _check_store(config: Config, reader: StoreReader, tokenizer: Tokenizer) -> None:
    manifest = reader.manifest
    if tokenizer.hash != manifest.tokenizer_hash:
        raise DataError(
            f"{reader.path}: its vocabulary or medians are not the ones it was built with: build the store again"
        )
    if manifest.top_k > config.data.row_length:
        raise DataError(
            f"{reader.path}: cells have up to {manifest.top_k:,} tokens (--top-k), rows have data.row_length="
            f"{config.data.row_length:,}: a cell must fit a row; raise data.row_length or build with a smaller --top-k"
        )
