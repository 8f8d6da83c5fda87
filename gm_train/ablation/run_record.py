"""What a run of an ablation was made from, so that a finished one is used again and a changed definition is noticed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path, replace_file
from gm_train.ablation.definition import Scoring
from gm_train.checkpoint.find import open_checkpoint
from gm_train.config.load import flat
from gm_train.config.schema import Config

RECORD, ASKED = "ablation-run.json", "asked.json"
#: Settings that are paths, which say nothing of what a run is; what lies there is compared instead, by its hash or
#: its recipe.
_PATHS = ("run.dir", "data.store", "objective.pathways", "model.init_from")


@dataclass(frozen=True)
class Request:
    """What is scored: the test cells of a run's store.

    Attributes:
        store: the store of the run, a path.
        files: its count files.
        scoring: tasks, label and so on; `regulation` is a path.
    """

    store: str
    files: list[str]
    scoring: Scoring

    def content(self) -> dict[str, Any]:
        """The request as JSON, with the hash of its table of regulation."""
        content = asdict(self)
        if regulation := content["scoring"].pop("regulation"):
            content["regulation"] = hash_path(Path(regulation))
        return content

    def words(self, run: Path) -> list[str]:
        """The arguments of `gm-train` that score a run."""
        scoring = self.scoring
        words = ["eval", str(run), *self.files, "--store", self.store, "--split", "test", "--tasks", *scoring.tasks]
        for option, column in (("--label", scoring.label), ("--batch", scoring.batch)):
            words += [option, column] if column else []
        words += ["--regulation", scoring.regulation] if scoring.regulation else []
        return [*words, "--max-cells", str(scoring.max_cells), "--mask-seeds", str(scoring.mask_seeds)]


@dataclass(frozen=True)
class RunRecord:
    """The record in a run directory.

    Attributes:
        directory: of the run.
        inputs: what the training depends on: settings by their full names, and of the store what it is made from.
        request: what is scored.
    """

    directory: Path
    inputs: dict[str, Any]
    request: Request

    @classmethod
    def of(cls, directory: Path, config: Config, store: dict[str, Any], request: Request) -> "RunRecord":
        """Record a configuration and the recipe of its store.

        Args:
            directory: of the run.
            config: resolved.
            store: what the store is made from.
            request: what is scored.

        Raises:
            DataError: a file that is compared is missing: of gene sets, of regulation, or the checkpoint of
                `model.init_from`.
        """
        settings = {key: value for key, value in flat(config).items() if key not in _PATHS}
        sets = config.objective.pathways
        if sets and not Path(sets).is_file():
            raise DataError(f"objective.pathways={sets}: no such file: name a GMT file")
        inputs = settings | {"objective.pathways": hash_path(Path(sets)) if sets else ""}
        if config.model.init_from:
            inputs["model.init_from"] = open_checkpoint(Path(config.model.init_from)).hash
        if (table := request.scoring.regulation) and not Path(table).is_file():
            raise DataError(f"scoring.regulation={table}: no such file: name a table of regulators and targets")
        inputs |= {f"store.{key}": value for key, value in store.items()}
        return cls(directory, json.loads(json.dumps(inputs)), request)

    @property
    def evaluation(self) -> Path:
        """The folder of its evaluation."""
        return self.directory / "eval"

    def differences(self) -> list[str]:
        """What a run in this directory was made with that differs, such as "optim.lr was 0.1, is 0.2".

        Raises:
            DataError: there is a run without a record, or the record is damaged.
        """
        if not self.directory.exists():
            return []
        earlier = self._read().get("inputs")
        if not isinstance(earlier, dict):
            return ["it is not a run of an ablation, or its record is damaged"]
        return [
            f"{key} was {earlier.get(key)!r}, is {self.inputs.get(key)!r}"
            for key in sorted(earlier.keys() | self.inputs.keys())
            if earlier.get(key) != self.inputs.get(key)
        ]

    def is_trained(self) -> bool:
        """Whether the training has finished."""
        return bool(self._read().get("trained"))

    def is_scored(self) -> bool:
        """Whether the finished training was scored as requested."""
        try:
            asked = json.loads((self.evaluation / ASKED).read_text())
        except (OSError, ValueError):
            return False
        return self.is_trained() and asked == self.request.content() and (self.evaluation / "eval.json").is_file()

    def begin(self) -> None:
        """Write the record, before the training."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write(False)

    def finish(self) -> None:
        """Note that the training has finished."""
        self._write(True)

    def ask(self) -> None:
        """Write the request for the evaluation, and remove the scores of an earlier one."""
        self.evaluation.mkdir(parents=True, exist_ok=True)
        (self.evaluation / "eval.json").unlink(missing_ok=True)
        replace_file(self.evaluation / ASKED, json.dumps(self.request.content(), indent=1) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self.directory / RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, trained: bool) -> None:
        content = {"trained": trained, "inputs": self.inputs}
        replace_file(self.directory / RECORD, json.dumps(content, indent=1) + "\n")
