"""Train a model from a configuration: set up or resume the run, train, report."""

import json
import logging
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from data_shards.errors import DataError
from data_shards.hashing import fold
from data_shards.reader import StoreReader
from data_shards.stream import LaneStream, Plan
from data_shards.tokenizer import Tokenizer
from data_shards.vocabulary import FIRST_GENE
from gm_train.batches import Recipe, make_examples
from gm_train.checkpoint import Checkpoint, list_checkpoints, load_training_state, recover
from gm_train.config import Config
from gm_train.datamodule import CellDataModule
from gm_train.leaving import Leaving
from gm_train.module import GeneMambaModule
from gm_train.objective.pathway import PathwayIndex, read_gmt
from gm_train.position import Position
from gm_train.recorder import Recorder
from gm_train.report import write_report
from gm_train.rundir import (
    METRICS,
    SKIPPED,
    forget_after,
    identity_of,
    locked,
    refuse_other_identity,
    write_config,
    write_environment,
)
from gm_train.settings import ConfigError, config_from_file, find_problems
from gm_train.tracking import MlflowMirror, tracking_uri

log = logging.getLogger(__name__)

_THIN_PAIRS = 1.0  # fewer positive pairs a cell than this make L_pathway mostly noise
_COVERAGE_ROWS = 64


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        checkpoint: the newest one, None if none was written.
        left_by: the signal that ended it early, if one did; the run then goes on where it is started again.
    """

    checkpoint: Checkpoint | None
    left_by: signal.Signals | None


def fit(config: Config, leaving: Leaving | None = None) -> Outcome:
    """Train until `trainer.max_steps`, from the run directory's newest whole checkpoint if it has one.

    Args:
        config: checked, as `load_config` returns it.
        leaving: catches the signals that ask the run to save and leave; none: signals do what they did before.

    Raises:
        DataError: the store or the checkpoint does not fit the configuration, or the run directory is in use.
        ConfigError: a fresh run whose schedule is shorter than its warm-up.
    """
    reader = StoreReader(config.data.store, config.data.cache_mb << 20)
    tokenizer = Tokenizer.load(reader.path)
    _check_store(config, reader, tokenizer)
    pathways = _pathways(config, tokenizer)
    directory = Path(config.run.dir)
    with locked(directory):
        return _fit(config, directory, reader, tokenizer, pathways, leaving or Leaving())


def _fit(
    config: Config,
    directory: Path,
    reader: StoreReader,
    tokenizer: Tokenizer,
    pathways: PathwayIndex | None,
    leaving: Leaving,
) -> Outcome:
    checkpoint = recover(directory / "checkpoints")
    _resolve_schedule(config, checkpoint)
    identity = identity_of(config, reader.manifest.hash, tokenizer.vocabulary.hash, tokenizer.medians_hash)
    if checkpoint is not None:
        saved = json.loads((checkpoint.path / "identity.json").read_text())
        refuse_other_identity(checkpoint.path, saved, identity)
    position = Position.load(checkpoint.path / "position.json") if checkpoint else Position.start(config.data.lanes)

    # Everything random in the weights comes from here; data, masks and pairs have counter hashes of their own.
    torch.manual_seed(fold(config.run.seed) >> 1)
    module = GeneMambaModule(config, tokenizer.vocabulary.size, position.step)
    recipe = Recipe(
        config.objective,
        config.run.seed,
        tokenizer.vocabulary.size,
        config.data.row_length,
        pathways,
    )
    data = CellDataModule(config.data, recipe, position, config.trainer.max_steps, config.trainer.validation_cells)
    _announce(config, reader, module, data, checkpoint)

    for name in (METRICS, SKIPPED):
        if dropped := forget_after(directory / name, position.step):
            log.info("%s: dropped %d rows behind step %d, where training goes on", name, dropped, position.step)
    unfinished = position.step < config.trainer.max_steps
    if unfinished:
        write_config(directory, config)
        write_environment(directory, position.step)
    else:
        print(f"nothing to do at step {position.step:,}: raise trainer.max_steps to go on")
    mirror = MlflowMirror(config, position.step) if tracking_uri(config) else None
    if mirror:
        mirror.start()
    recorder = Recorder(directory, position, identity, tokenizer, reader.manifest.hash, leaving)
    status = "FAILED"
    try:
        if unfinished and leaving.number is None:
            _trainer(config, recorder, _Resume(checkpoint)).fit(module, datamodule=data)
        status = "FINISHED" if leaving.number is None else "KILLED"
        _report(directory)
    finally:
        if mirror:
            mirror.finish(status)
    newest = next(reversed(list_checkpoints(directory / "checkpoints")), None)
    how = "finished" if leaving.number is None else f"left by {leaving.number.name}"
    where = f"checkpoint {newest.path}" if newest else "no checkpoint, since no step changed a weight"
    steps = f"step {position.step:,} of {config.trainer.max_steps:,}"
    print(f"{how} at {steps}: {position.cells:,} cells trained; {where}")
    return Outcome(newest, leaving.number)


def _report(directory: Path) -> None:
    """Draw what was recorded; a training that went well does not fail for its pictures."""
    try:
        write_report(directory)
    except Exception as error:
        log.warning("%s: report.html could not be written (%s)", directory, error)


@dataclass
class _Resume(L.Callback):
    """Loads weights and optimizer state once Lightning has built the optimizer."""

    checkpoint: Checkpoint | None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.checkpoint is not None:
            assert isinstance(module, GeneMambaModule)
            load_training_state(self.checkpoint, module.model, module.optimizer)


def _trainer(config: Config, *callbacks: L.Callback) -> L.Trainer:
    # Steps, validation, checkpoints and progress are the recorder's: Lightning counts them from the start of the
    # process, a resumable run from its own start.
    warnings.filterwarnings(
        "ignore", message=".*(does not have many workers|isinstance.treespec, LeafSpec|This DataLoader will create).*"
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if config.trainer.precision == "bf16" else "32-true",
        max_epochs=1,
        # Under SLURM Lightning would save and requeue from a signal handler, and load such files from other runs.
        plugins=[LightningEnvironment()],
        default_root_dir=config.run.dir,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )


def _check_store(config: Config, reader: StoreReader, tokenizer: Tokenizer) -> None:
    manifest = reader.manifest
    if tokenizer.hash != manifest.tokenizer_hash:
        raise DataError(
            f"{reader.path}: its vocabulary and medians are not those that it was made with: build the store again"
        )
    if manifest.top_k > config.data.row_length:
        raise DataError(
            f"{reader.path}: cells have up to {manifest.top_k:,} tokens (--top-k), rows have data.row_length="
            f"{config.data.row_length:,}: a cell must fit a row; raise data.row_length or build with a smaller --top-k"
        )


def _resolve_schedule(config: Config, checkpoint: Checkpoint | None) -> None:
    """The schedule's length is the run's own: fixed at its first start, whatever the budget of later ones."""
    if config.optim.schedule_steps is None:
        if checkpoint is None:
            config.optim.schedule_steps = config.trainer.max_steps
            if problems := find_problems(config):
                raise ConfigError(problems)
        else:
            config.optim.schedule_steps = config_from_file(checkpoint.path / "config.yaml").optim.schedule_steps


def _pathways(config: Config, tokenizer: Tokenizer) -> PathwayIndex | None:
    objective = config.objective
    if not objective.pathways or objective.gamma == 0:
        return None
    sets = read_gmt(Path(objective.pathways))
    low, high = objective.pathway_size
    return PathwayIndex.build(sets, _token_of_name(tokenizer), tokenizer.vocabulary.size, (low, high))


def _token_of_name(tokenizer: Tokenizer) -> dict[str, int]:
    """Gene ids to tokens, and the symbols of the store's gene table that name one id alone."""
    token_of = tokenizer.vocabulary.token_of
    if tokenizer.gene_table is None:
        return token_of
    symbols = {
        symbol: token_of[next(iter(ids))]
        for symbol, ids in tokenizer.gene_table.ids_of.items()
        if len(ids) == 1 and next(iter(ids)) in token_of
    }
    return symbols | token_of


def _announce(
    config: Config, reader: StoreReader, module: GeneMambaModule, data: CellDataModule, checkpoint: Checkpoint | None
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
    print(
        f"model {model.arch} {model.n_layers} x {model.d_model}, {model.aggregation}, norm {model.norm}: "
        f"{n_parameters:,} parameters; kernel torch{' (auto: the only one here)' if model.kernel == 'auto' else ''}"
    )
    rows = config.data.lanes * config.data.rows_per_lane
    print(f"step: {rows} rows of {config.data.row_length} tokens from {config.data.lanes} lanes")
    if data.recipe.pathways is not None:
        _announce_coverage(config, reader, data.recipe, data.plan)
    if checkpoint is not None:
        print(f"resuming {config.run.dir} from step {checkpoint.step:,} ({checkpoint.path.name})")


def _announce_coverage(config: Config, reader: StoreReader, recipe: Recipe, plan: Plan) -> None:
    """Print how much of the genes, the tokens and the cells L_pathway can speak of, on the first rows of the data."""
    assert recipe.pathways is not None
    rows = LaneStream(reader, plan, lane=0).take(_COVERAGE_ROWS)
    annotated = recipe.pathways.annotated
    tokens = np.concatenate([row.tokens for row in rows])
    examples = make_examples(rows, recipe)
    n_cells = len(examples.row_of_cell)
    pairs = examples.positive.sum() / 2 / n_cells
    print(
        f"pathways {config.objective.pathways}: {recipe.pathways.n_sets} sets in use, "
        f"{annotated[FIRST_GENE:].mean():.1%} of genes, {annotated[tokens].mean():.1%} of tokens, "
        f"{pairs:.1f} drawn positive pairs a cell"
    )
    if pairs < _THIN_PAIRS:
        log.warning("the gene sets are thin on these cells: L_pathway will say little; use broader sets")
