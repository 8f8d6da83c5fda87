"""The scores of a panel's controls: computed once, in a process of their own, and kept in the run directory."""

import contextlib
import json
import logging
import os
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from data_shards.workers.workers import end_with_parent
from gm_train.evaluation.panel.panel import ControlScores, Panel
from gm_train.evaluation.panel.panel_cells import PanelCells
from gm_train.ranks.signals import children_deaf

log = logging.getLogger(__name__)

#: The panel of a run: its cells, the step since which it is scored, and its controls.
PANEL = "panel.json"


class PanelControls:
    """Knows the controls of a panel, or computes them in a process of their own while the run trains.

    Args:
        directory: the run directory.
        cells: of the panel.
        vocabulary_size: number of tokens, specials included.
        step: the step that this start continues from.
        about: what else `panel.json` holds.

    Attributes:
        since_step: scores of later steps are of this panel.
    """

    def __init__(
        self, directory: Path, cells: PanelCells, vocabulary_size: int, step: int, about: dict[str, Any]
    ) -> None:
        self._path, self._cells, self._size = directory / PANEL, cells, vocabulary_size
        kept = read_panel(directory)
        self.since_step = step
        self._controls: ControlScores | None = None
        if kept.get("hash") == cells.hash:
            self.since_step, self._controls = min(step, kept["since_step"]), kept["controls"]
        self._about = {"hash": cells.hash, "since_step": self.since_step, **about}
        self._process: BaseProcess | None = None
        self._answer: Connection

    def start(self) -> None:
        """Write `panel.json`, and start to compute the controls if it does not have them yet.

        Raises:
            DataError: the run directory cannot be written.
        """
        self._write()
        if self._controls is not None:
            return
        context = get_context("spawn")
        self._answer, send = context.Pipe(duplex=False)
        arguments = send, self._cells, self._size
        self._process = context.Process(target=_compute, args=arguments, name="panel-controls", daemon=True)
        with children_deaf():
            self._process.start()
        send.close()

    def scores(self) -> ControlScores:
        """Wait for the scores; none at all if their process failed, which the next start of the run repeats.

        Raises:
            DataError: the run directory cannot be written.
        """
        if self._process is not None:
            answer: ControlScores | str = "its process has ended early"
            with contextlib.suppress(EOFError, OSError):  # it was killed, perhaps in the middle of its answer
                answer = self._answer.recv()
            self.close()
            if isinstance(answer, str):
                log.warning(
                    "the panel's controls were not computed (%s): the panel is scored without them; the next start of "
                    "this run tries again", answer,
                )  # fmt: skip
            else:
                self._controls = answer
                self._write()
        return self._controls or {}

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._answer.close()
            self._process = None

    def _write(self) -> None:
        try:
            replace_file(self._path, json.dumps({**self._about, "controls": self._controls}, indent=1) + "\n")
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be written ({error.strerror}): free disk space, then start again"
            ) from error


def read_panel(directory: Path) -> dict[str, Any]:
    """What a run directory has of its panel: empty if it has none, or it cannot be read."""
    try:
        return dict(json.loads((directory / PANEL).read_text()))
    except (OSError, ValueError):
        return {}


def _compute(send: Connection, cells: PanelCells, vocabulary_size: int) -> None:
    """Compute the scores of the controls and send them.

    One thread, and last in the queue for a core: the training goes first.
    """
    end_with_parent()
    os.nice(19)
    torch.set_num_threads(1)
    answer: ControlScores | str
    try:
        with threadpool_limits(1):
            answer = Panel(cells, vocabulary_size).score_controls()
    except Exception as error:  # whatever it is, the training goes on without controls
        answer = f"{type(error).__name__}: {error}"
    with contextlib.suppress(BrokenPipeError):
        send.send(answer)
