"""Turn a definition into the runs to train: a variant with a seed, its settings and how its cells are ranked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from data_shards.errors import DataError, OptionError
from gm_train.ablation.definition import ATLAS, Definition, StoreChoice
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.evaluation.tasks import choose_tasks

#: Words in settings that stand for files of a simulated atlas: its gene programmes, and sets of the same sizes and
#: overlaps of other genes, drawn at random.
PROGRAMMES, RANDOM_SETS = "$programmes", "$random_sets"
_STORE = "store."


@dataclass(frozen=True)
class PlannedRun:
    """A training and its evaluation.

    Attributes:
        variant: its name.
        seed: of the model.
        split_seed: of the split of the cells.
        words: files and settings for `gm-train fit`, without store, directory and seed; they may contain `PROGRAMMES`.
        store: how its cells are ranked.
    """

    variant: str
    seed: int
    split_seed: int
    words: tuple[str, ...]
    store: StoreChoice

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return f"{self.variant}-seed{self.seed}"

    def settings(self, directory: Path, store: Path, cells: Path) -> list[str]:
        """Words for `gm-train fit`.

        Args:
            directory: of the run.
            store: made as `self.store` says.
            cells: folder of a simulated atlas.
        """
        words = [
            word.replace(PROGRAMMES, str(cells / "atlas.gmt")).replace(RANDOM_SETS, str(cells / "random.gmt"))
            for word in self.words
        ]
        # The trials are not sent anywhere: their page shows them.
        return [*words, "tracking.mlflow=none", f"run.dir={directory}", f"run.seed={self.seed}", f"data.store={store}"]

    def config(self, directory: Path, store: Path, cells: Path) -> Config:
        """The resolved configuration; arguments as for `settings`."""
        return load_config(*self.settings(directory, store, cells))


def plan_runs(
    path: Path, definition: Definition, variants: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[PlannedRun]:
    """List the runs of an ablation, seed by seed, so that an interrupted ablation can compare all variants.

    Args:
        path: of the definition, for messages.
        definition: the ablation.
        variants, seeds: only these; empty for all.

    Raises:
        OptionError: the definition has no such variant or seed.
        DataError: the settings of a variant, or the tasks, cannot be used.
    """
    for option, asked, known in (("variants", variants, definition.variants), ("seeds", seeds, definition.seeds)):
        if unknown := [one for one in asked if one not in known]:
            raise OptionError(
                f"--{option} {','.join(map(str, unknown))}: not in {path}: there are {', '.join(map(str, known))}"
            )
    try:
        choose_tasks(definition.scoring.tasks)
    except OptionError as error:
        raise DataError(f"{path}: scoring.tasks: {error}") from error
    runs = []
    for seed in definition.seeds:
        for variant, words in definition.variants.items():
            if (seeds and seed not in seeds) or (variants and variant not in variants):
                continue
            run = _planned(path, definition, variant, words, seed)
            try:
                run.config(Path(run.name), Path("store"), Path("cells"))
            except ConfigError as error:
                raise DataError(f"{path}: variant {variant}: {error}") from error
            runs.append(run)
    return runs


def _planned(path: Path, definition: Definition, variant: str, words: Sequence[str], seed: int) -> PlannedRun:
    own = [word for word in words if not word.startswith(_STORE)]
    every = (*definition.base, *own)
    if definition.cells.source != ATLAS and any(PROGRAMMES in word or RANDOM_SETS in word for word in every):
        raise DataError(f"{path}: {PROGRAMMES} and {RANDOM_SETS} are files of a simulated atlas: name a GMT file")
    changes = [word.removeprefix(_STORE) for word in words if word.startswith(_STORE)]
    split_seed = seed if definition.split.every_seed else definition.split.seed
    return PlannedRun(variant, seed, split_seed, every, _changed(path, variant, definition.store, changes))


def _changed(path: Path, variant: str, store: StoreChoice, changes: Sequence[str]) -> StoreChoice:
    """The store of a variant, with the changes `key=value` that it makes."""
    kinds = {one.name: type(one.default) for one in fields(StoreChoice)}
    changed: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        value = yaml.safe_load(text)
        if key not in kinds:
            raise DataError(f"{path}: variant {variant}: unknown key store.{key}: there are {', '.join(kinds)}")
        if type(value) is not kinds[key]:
            raise DataError(f"{path}: variant {variant}: store.{key}={text}: expected {kinds[key].__name__}")
        changed[key] = value
    return replace(store, **changed)
