"""Train a model from a configuration: set up or resume the run, train, report."""

import contextlib
import json
import logging
import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy

from data_shards.errors import DataError
from gm_train.checkpoint.find import Checkpoint, list_checkpoints, recover, refuse_other_form
from gm_train.checkpoint.first_start import fix_rows_per_lane
from gm_train.checkpoint.known_cells import keep_cell_hashes
from gm_train.checkpoint.save import About
from gm_train.config.check import ConfigError, config_problems, rank_problems
from gm_train.config.load import config_from_file, flat, with_absolute_paths
from gm_train.config.micro_rows import data_of_ranks
from gm_train.config.schema import Config
from gm_train.loading.open_data import OpenData, open_data
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches
from gm_train.model.kernels.scan_kernels import kernel_of
from gm_train.ranks.allocator import keep_freed_memory
from gm_train.ranks.launch_local import PREEMPTIONS
from gm_train.ranks.ranks import Ranks, find_ranks, joined
from gm_train.ranks.signals import Leaving
from gm_train.run.lock import MARKER, RunLock, locked, mark_preempted
from gm_train.run.loggers import LoggerThread
from gm_train.run.mlflow_mirror import MlflowMirror, tracking_uri
from gm_train.run.record_writer import RecordWriter
from gm_train.run.records import (
    METRICS,
    QUARANTINE,
    SKIPPED,
    forget_after,
    identity_of,
    last_time,
    refuse_other_identity,
    repair_rows,
    write_config,
    write_environment,
)
from gm_train.strategies.choose import WITHOUT_GROUP, choose, device_memory, strategy_class
from gm_train.strategies.joined import Joined
from gm_train.strategies.steps import Steps
from gm_train.train.announce import announce, warn_of_other_kernels
from gm_train.train.callbacks import StepCallbacks, load_callbacks
from gm_train.train.grown_store import GrownStore
from gm_train.train.live_evaluation import LiveEvaluation
from gm_train.train.out_of_memory import advising_on_memory
from gm_train.train.patience import Patience
from gm_train.train.recorder import Recorder
from gm_train.train.run_report import write_report
from gm_train.train.step_flops import StepFlops
from gm_train.train.step_module import StepModule
from gm_train.weights.imported_checkpoint import refuse_imported
from gm_train.weights.init_from import INIT, initial_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        checkpoint: the newest one; None if none was written.
        stopped_by: the signal that ended it early, after which the next start resumes the run; None if no signal did.
    """

    checkpoint: Checkpoint | None
    stopped_by: signal.Signals | None


def fit(config: Config, leaving: Leaving | None = None) -> Outcome:
    """Train until `trainer.max_steps`, from the run directory's newest whole checkpoint if it has one.

    Every rank of a run calls this; it connects them.

    Args:
        config: checked, as `load_config` returns it.
        leaving: catches the signals that ask the run to save and leave. With None, signals keep their handlers.

    Raises:
        DataError: the store or the checkpoint does not fit the configuration, `model.kernel` cannot run here, the run
            directory is in use, the ranks did not find each other, or a GPU's memory is too small.
        ConfigError: the configuration cannot use this number of ranks, or the schedule of a new run is shorter than its
            warm-up.
    """
    ranks = find_ranks(config.trainer)
    if problems := rank_problems(config, ranks.world_size):
        raise ConfigError(problems, everywhere=True)
    keep_freed_memory(ranks.device())
    directory = Path(config.run.dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(ranks, alone=config.trainer.strategy not in WITHOUT_GROUP))
        stack.enter_context(advising_on_memory(config, ranks))
        warn_of_other_kernels(ranks.gather(ranks.together(lambda: kernel_of(config, ranks.device()))))
        callbacks = load_callbacks(config.trainer.callbacks, ranks)
        data = ranks.together(lambda: open_data(config))
        lock = ranks.on_first(lambda: stack.enter_context(locked(directory)))
        return _fit(config, directory, data, callbacks, leaving or Leaving(), ranks, lock)


def _fit(
    config: Config,
    directory: Path,
    data: OpenData,
    callbacks: list[L.Callback],
    leaving: Leaving,
    ranks: Ranks,
    lock: RunLock | None,
) -> Outcome:
    checkpoint = ranks.from_first(lambda: recover(directory / "checkpoints"))
    _resolve_schedule(config, checkpoint)
    chosen_step = fix_rows_per_lane(config, ranks.world_size, checkpoint)
    if problems := rank_problems(config, ranks.world_size):
        raise ConfigError(problems, everywhere=True)
    reader, tokenizer = data.reader, data.tokenizer
    saved = json.loads((checkpoint.path / "identity.json").read_text()) if checkpoint else {}
    grown = GrownStore.find(saved, reader.manifest)
    if grown is not None:
        saved = grown.carry_over(config, saved)
    identity = identity_of(config, reader.manifest.hash, tokenizer.vocabulary.hash, tokenizer.medians_hash)
    start = ranks.from_first(lambda: initial_weights(config, tokenizer, checkpoint))
    if start is not None:
        identity[INIT] = start.identity
    classes = None if data.recipe.cell_classes is None else data.recipe.cell_classes.classes
    if classes is not None:
        identity["classes"] = classes.hash
        if grown is not None and checkpoint is not None:
            saved |= grown.carry_over_classes(checkpoint.classes, classes)
    _refuse_differing_ranks(config, identity, ranks)
    if checkpoint is not None:
        ranks.from_first(lambda: refuse_imported(checkpoint, saved))
        ranks.from_first(lambda: refuse_other_identity(checkpoint.path, saved, identity))
    position = Position.load(checkpoint.path / "position.json") if checkpoint else Position.start(config.data.lanes)
    if grown is not None:
        position = position.on_grown_store(grown.earlier.hash)
    # Data sets that are added while this process trains are for its next start.
    position.store_hash = reader.manifest.hash

    module = StepModule(config, tokenizer.vocabulary.size, ranks, leaving, position.step, classes)
    if start is not None:
        ranks.together(lambda: start.load_into(module.model, tokenizer))
    trainer = config.trainer
    of_ranks = data_of_ranks(config, ranks.world_size)
    batches = RankBatches(of_ranks, data.recipe, position, trainer.max_steps, trainer.validation_cells, ranks)
    strategy, why, chosen = _choose_strategy(config, module, ranks)
    if checkpoint is not None:
        ranks.from_first(lambda: refuse_other_form(checkpoint, chosen.form, ranks.world_size))
    patience = ranks.from_first(lambda: Patience.resumed(trainer.patience, directory, position))
    unfinished = position.step < trainer.max_steps and not patience.is_over
    live = None
    if config.evaluation.every_steps and unfinished:
        live = LiveEvaluation(config, data, directory, position.step, ranks)
    mirror: MlflowMirror | None = None
    if ranks.is_first:
        compile_setting = chosen.compile_setting(config.trainer.compile)
        announce(config, reader, module, batches, checkpoint, f"{strategy} ({why})", compile_setting, ranks)
        for line in (chosen_step, "" if start is None else start.line, "" if live is None else live.line):
            if line:
                print(line, flush=True)
        if grown is not None and unfinished:
            print(grown.describe(position, config.data.weights), flush=True)
        mirror = MlflowMirror(config, position.step) if tracking_uri(config) else None
    ranks.from_first(lambda: _begin(config, directory, position, ranks, strategy) if unfinished else None)
    ranks.from_first(lambda: keep_cell_hashes(directory, reader.path, reader.manifest) if unfinished else None)
    if not unfinished and ranks.is_first:
        setting = "patience" if patience.is_over else "max_steps"
        print(f"nothing to do at step {position.step:,}: raise trainer.{setting} to train further")
    if mirror:
        mirror.start()
    names = [name for name in config.tracking.loggers if name != "mlflow"]
    loggers = [LoggerThread(name, config, position.step) for name in names if ranks.is_first and unfinished]
    for logger in loggers:
        logger.start()
    about = About(with_absolute_paths(config), identity, tokenizer, reader.manifest.hash, reader.manifest, classes)
    at_steps = StepCallbacks(callbacks, ranks, position.step)
    writer = None if lock is None else RecordWriter(directory, lock, loggers)
    recorder = Recorder(
        directory, position, batches, about, checkpoint, leaving, ranks, lock, writer, at_steps, patience, live,
        StepFlops.of_run(config, tokenizer.vocabulary.size, ranks.device()),
    )  # fmt: skip
    status = "FAILED"
    try:
        if live is not None:
            live.start()
        if unfinished and leaving.agree(ranks) is None:
            lightning = _trainer(config, chosen(ranks, config.optim.clip), ranks, [recorder, at_steps])
            lightning.fit(module, train_dataloaders=batches.train_batches(ranks.device()))
        if leaving.agreed in PREEMPTIONS and "SLURM_JOB_ID" in os.environ:
            # Before the report: little time may be left.
            ranks.from_first(lambda: mark_preempted(directory, lock))
        status = "FINISHED" if leaving.agreed is None else "KILLED"
        if ranks.is_first and position.step:
            _report(directory)
    finally:
        if live is not None:
            live.close()
        patience_s = 30.0 if leaving.agreed is None else 5.0
        for logger in loggers:
            logger.finish(status == "FINISHED", patience_s)
        # If another start has taken over, the MLflow run belongs to that start.
        if mirror and (lock is None or lock.holds()):
            mirror.finish(status, patience_s)
    newest = ranks.from_first(lambda: next(reversed(list_checkpoints(directory / "checkpoints")), None))
    if ranks.is_first:
        how = "finished" if position.step >= trainer.max_steps else "stopped by a callback"
        if patience.is_over:
            how = f"stopped early ({trainer.patience} validations without a lower loss)"
        if leaving.agreed is not None:
            how = f"stopped by {leaving.agreed.name}"
        where = f"checkpoint {newest.path}" if newest else "no checkpoint, because no step changed a weight"
        steps = f"step {position.step:,}" + (f" of {trainer.max_steps:,}" if position.step <= trainer.max_steps else "")
        after = "; the same command continues" if newest and leaving.agreed is not None else ""
        print(f"{how} at {steps}: {position.cells:,} cells trained; {where}{after}", flush=True)
    return Outcome(newest, leaving.agreed)


def _refuse_differing_ranks(config: Config, identity: dict[str, Any], ranks: Ranks) -> None:
    """Raise DataError if ranks differ in the run or its length.

    Paths may differ between nodes: the identity has the hashes of their contents.
    """
    own = {
        key: value
        for key, value in (flat(config) | identity).items()
        if key not in ("data.store", "objective.pathways", "model.init_from")
    }
    everyone = ranks.gather(own)

    def compare() -> None:
        for rank, other in enumerate(everyone):
            differing = [key for key in own if other[key] != own[key]]
            if differing:
                lines = [f"  {key}: {own[key]!r} on rank 0, {other[key]!r} on rank {rank}" for key in differing]
                raise DataError(
                    "the ranks have different configurations or inputs:\n"
                    + "\n".join(lines)
                    + "\ngive every node the same files, and start all ranks with the same arguments"
                )

    ranks.from_first(compare)


def _begin(config: Config, directory: Path, position: Position, ranks: Ranks, strategy: str) -> None:
    """Cut the records back to the step that training resumes from, and record this start."""
    ended = last_time(directory / METRICS)
    for name in (METRICS, SKIPPED):
        if dropped := forget_after(directory / name, position.step):
            log.info("%s: dropped %d rows after step %d, where training resumes", name, dropped, position.step)
    # Its rows are kept: chunks found damaged stay damaged, whichever step the run resumes from.
    repair_rows(directory / QUARANTINE)
    (directory / MARKER).unlink(missing_ok=True)
    write_config(directory, config)
    write_environment(directory, position.step, ranks, strategy, ended)


def _choose_strategy(config: Config, module: StepModule, ranks: Ranks) -> tuple[str, str, type[Steps]]:
    """Choose the strategy; return its name, the reason and its class.

    Raises:
        DataError: the strategy needs a package that is not installed, or this process does not see a GPU for each rank.
    """
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    strategy, why = choose(config.trainer.strategy, n_parameters, ranks, device_memory(ranks))
    n_gpus = torch.cuda.device_count()
    if n_gpus and n_gpus < ranks.local_size:
        raise DataError(
            f"{ranks.local_size} ranks on this node see {n_gpus} GPUs: let every task see all GPUs of the node (no "
            "--gpus-per-task, no --gpu-bind); each rank takes one of them"
        )
    return strategy, why, strategy_class(strategy)


def _report(directory: Path) -> None:
    """Write the report; an error in it must not fail the training."""
    try:
        write_report(directory)
    except Exception as error:
        log.warning("report.html could not be written: %s", error)


def _trainer(config: Config, strategy: Steps, ranks: Ranks, callbacks: list[L.Callback]) -> L.Trainer:
    assert isinstance(strategy, Strategy)
    # The recorder does steps, validation, checkpoints and progress: Lightning counts steps from the start of the
    # process, a resumable run counts them from its first start.
    for noise in (
        "does not have many workers", "command is available on your system", "isinstance.treespec, LeafSpec",
        "This DataLoader will create", "have no `val_dataloader`",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", f".*{noise}.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(
        accelerator="cuda" if ranks.device().type == "cuda" else "cpu",
        strategy=strategy,
        devices=ranks.local_size,
        num_nodes=ranks.n_nodes,
        max_epochs=1,
        # There is no validation loop, but callbacks look here for when they are called.
        val_check_interval=config.trainer.validate_every_steps or 1.0,
        # The ranks are connected already. Under SLURM, Lightning would also save and requeue from a signal handler, and
        # would load files saved that way by other runs.
        plugins=[Joined(ranks)],
        default_root_dir=config.run.dir,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    # The recorder decides when to leave. Lightning's own signal handler communicates with the other ranks, which hangs,
    # and its loop does so at every micro-batch. These private names are those of the pinned version.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _resolve_schedule(config: Config, checkpoint: Checkpoint | None) -> None:
    """Fix the length of the schedule at the run's first start; later starts keep it, whatever their `max_steps`."""
    if config.optim.schedule_steps is None:
        if checkpoint is None:
            config.optim.schedule_steps = config.trainer.max_steps
            if problems := config_problems(config):
                raise ConfigError(problems, everywhere=True)
        else:
            config.optim.schedule_steps = config_from_file(checkpoint.path / "config.yaml").optim.schedule_steps
