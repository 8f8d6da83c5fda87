"""Run an ablation: make its stores, train and score every run that is not finished."""

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from data_shards.workers import interrupts
from data_shards.workers.progress import Progress
from gm_train.ablation.cells import CellFiles, cell_files
from gm_train.ablation.child_process import ChildProcess
from gm_train.ablation.definition import REGULATION, Definition
from gm_train.ablation.planned_runs import PlannedRun
from gm_train.ablation.run_record import Request, RunRecord
from gm_train.ablation.stores import Stores
from gm_train.run.records import METRICS

_POLL_S = 0.5
#: Bytes at the end of `metrics.jsonl` that hold at least one row.
_TAIL = 8_192
_MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class AblationRun:
    """A run of an ablation in its directory.

    Attributes:
        planned: variant, seed and settings.
        record: what it is made from, and whether it is finished.
        words: of its `gm-train fit`.
        steps: of its training.
    """

    planned: PlannedRun
    record: RunRecord
    words: list[str]
    steps: int

    def held_out_ratio(self) -> float:
        """Test cells / training cells of its store.

        Raises:
            DataError: the store is missing or damaged.
        """
        datasets = Manifest.load(self.record.request.store).datasets
        return sum(one.n_test for one in datasets) / sum(one.n_train for one in datasets)

    def step(self) -> int:
        """The last step of the training that is recorded; 0 before the first one."""
        if self.record.is_trained():
            return self.steps
        try:
            with (self.record.directory / METRICS).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().splitlines()[1:]
        except OSError:
            return 0
        for line in reversed(lines):
            try:
                return min(self.steps, int(json.loads(line)["step"]))
            except (ValueError, KeyError, TypeError):
                continue
        return 0


def prepare_runs(
    definition: Definition, planned: Sequence[PlannedRun], given: Path | None, out: Path
) -> list[AblationRun]:
    """Make the cells and the stores of runs, and refuse runs in `out` that were made from something else.

    Args:
        definition: the ablation.
        planned: its runs.
        given: the file of counts; None for a simulated atlas.
        out: folder of the ablation.

    Raises:
        OptionError: a file is needed and none is given, or the other way around.
        DataError: cells or settings cannot be used, or `out` has runs of another definition.
    """
    cells = cell_files(definition.cells, given, out / "data")
    stores = Stores(out / "data", cells, definition.split)
    runs = [_ablation_run(definition, run, cells, stores, out) for run in planned]
    _refuse_changed(runs, out)
    for run in runs:
        stores.make(run.planned.store, run.planned.split_seed)
    return runs


def _ablation_run(
    definition: Definition, planned: PlannedRun, cells: CellFiles, stores: Stores, out: Path
) -> AblationRun:
    directory = out / "runs" / planned.name
    store = stores.path(planned.store, planned.split_seed)
    words = planned.settings(directory, store, cells.folder)
    config = planned.config(directory, store, cells.folder)
    regulation = definition.scoring.regulation.replace(REGULATION, str(cells.regulation))
    scoring = replace(definition.scoring, regulation=regulation)
    request = Request(str(store), [str(file) for file in cells.files], scoring)
    recipe = stores.recipe(planned.store, planned.split_seed)
    return AblationRun(planned, RunRecord.of(directory, config, recipe, request), words, config.trainer.max_steps)


def _refuse_changed(runs: Sequence[AblationRun], out: Path) -> None:
    for run in runs:
        if differences := run.record.differences():
            more = [f"and {n} more"] if (n := len(differences) - _MOST_DIFFERENCES) > 0 else []
            raise DataError(
                f"{run.record.directory}: was made from something else than this ablation now asks for:\n"
                + "\n".join(f"  {line}" for line in [*differences[:_MOST_DIFFERENCES], *more])
                + f"\nset this back, choose another --out, or remove {out / 'runs'} to start over"
            )


def run_all(runs: Sequence[AblationRun], jobs: int, threads: int) -> None:
    """Train and score the runs that are not finished; a second call continues after what is finished.

    Args:
        runs: from `prepare_runs`.
        jobs: how many run at the same time.
        threads: of each.

    Raises:
        DataError: a training or an evaluation failed. Those beside it save and leave.
    """
    waiting = deque((number, run) for number, run in enumerate(runs, 1) if not run.record.is_scored())
    if ready := len(runs) - len(waiting):
        print(f"{ready} of {len(runs)} runs are finished already", flush=True)
    active: list[_ActiveRun] = []
    total = sum(run.steps for run in runs)
    with Progress(total=total, initial=sum(run.step() for run in runs), unit=" steps", smoothing=0) as bar:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    number, run = waiting.popleft()
                    active.append(_ActiveRun(run, f"{number} of {len(runs)}, {run.planned.name}", threads))
                time.sleep(_POLL_S)
                interrupts.check()
                active = [one for one in active if not one.has_ended()]
                bar.set_description_str("; ".join(str(one) for one in active), refresh=False)
                bar.update(sum(run.step() for run in runs) - bar.n)
        finally:
            # All of them save at the same time.
            for one in active:
                one.ask_to_leave()
            for one in active:
                one.leave()


class _ActiveRun:
    """A run that is being trained, then scored."""

    def __init__(self, run: AblationRun, name: str, threads: int) -> None:
        self._run, self._name, self._threads = run, name, threads
        record = run.record
        self._trains = not record.is_trained()
        if self._trains:
            record.begin()
            words, log = ["gm_train.cli", "fit", *run.words], record.directory / "fit.log"
            self._process = ChildProcess(f"the training of {run.planned.name}", words, log, threads)
        else:
            self._process = self._scoring()

    def _scoring(self) -> ChildProcess:
        record = self._run.record
        record.ask()
        words = ["gm_train.cli", *record.request.words(record.directory)]
        log = record.evaluation / "eval.log"
        return ChildProcess(f"the evaluation of {self._run.planned.name}", words, log, self._threads)

    def has_ended(self) -> bool:
        """Whether it is trained and scored; starts its evaluation once it is trained."""
        if not self._process.has_ended():
            return False
        if self._trains:
            self._run.record.finish()
            self._trains, self._process = False, self._scoring()
            return False
        return True

    def ask_to_leave(self) -> None:
        """Begin to save, to leave then."""
        self._process.ask_to_leave()

    def leave(self) -> None:
        """Save and leave."""
        self._process.leave()

    def __str__(self) -> str:
        return f"{self._name}: {'training' if self._trains else 'scoring'}"
