"""The definition of an ablation: a question, cells, a split, variants, seeds and what is scored; from a YAML file."""

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError, OptionError
from data_shards.simulate.atlas_options import AtlasOptions

#: Where definitions are, seen from the folder in which commands are given.
FOLDER = Path("configs/ablations")
PBMC, ATLAS, DATA = "pbmc", "atlas", "data"
SOURCES = (PBMC, ATLAS, DATA)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Cells:
    """Where cells come from.

    Attributes:
        source: "pbmc" (the blood cells in scanpy's package), "atlas" (simulated) or "data" (a file named by `--data`).
        atlas: options of the simulator (`AtlasOptions`).
        parts: shares of the atlas that become data sets of their own, `atlas-1`, `atlas-2` and so on; none for one.
        reading: how counts of a file are read (`CountOptions`).
    """

    source: str = PBMC
    atlas: dict[str, Any] = field(default_factory=dict)
    parts: list[float] = field(default_factory=list)
    reading: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Which cells are held out.

    Attributes:
        by: "donor" or "cell", as `gm-train data shards --split-by`.
        validation, test: shares of the cells.
        every_seed: whether each seed draws a split of its own, as suits few cells.
    """

    by: str = "donor"
    validation: float = 0.15
    test: float = 0.2
    every_seed: bool = False


@dataclass(frozen=True)
class StoreChoice:
    """How cells are ranked. A variant may change it: `store.dither=true`.

    Attributes:
        top_k: largest number of tokens of a cell.
        dither: whether counts are dithered before they are ranked.
        variable_genes: how many of the genes that vary most form the vocabulary; 0 for all.
    """

    top_k: int = 512
    dither: bool = False
    variable_genes: int = 0


@dataclass(frozen=True)
class Scoring:
    """What is scored on the test cells, as by `gm-train eval`.

    Attributes:
        tasks: keys of evaluation tasks.
        label, batch: columns of obs; empty for none.
        max_cells: largest number of cells to read.
        mask_seeds: how often genes are hidden anew.
    """

    tasks: list[str] = field(default_factory=lambda: ["masked", "missing", "probes", "robustness"])
    label: str = ""
    batch: str = ""
    max_cells: int = 2_000
    mask_seeds: int = 3


@dataclass(frozen=True)
class Definition:
    """An ablation.

    Attributes:
        question: one sentence.
        cells, split, store, scoring: see their classes.
        base: files and settings of all variants, as `gm-train fit` takes them.
        variants: name to the settings that it changes; differences are to the first one.
        seeds: of the models, and of the splits if `split.every_seed`.
    """

    question: str
    cells: Cells
    base: list[str]
    variants: dict[str, list[str]]
    split: Split = field(default_factory=Split)
    store: StoreChoice = field(default_factory=StoreChoice)
    scoring: Scoring = field(default_factory=Scoring)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


_SECTIONS: dict[str, type] = {"cells": Cells, "split": Split, "store": StoreChoice, "scoring": Scoring}


def find_definition(name: str) -> Path:
    """The file of an ablation: of a name in `configs/ablations`, or of a path that ends in `.yaml`.

    Raises:
        OptionError: there is no such file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in FOLDER.glob("*.yaml")))
        instead = f"there are {known}" if known else f"there is no folder {FOLDER} here: give the path of a .yaml file"
        raise OptionError(f"{name}: no such ablation: {instead}")
    return path


def read_definition(path: Path) -> Definition:
    """Read and check a definition.

    Raises:
        DataError: the file cannot be read, a key is unknown or missing, or a value cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}): correct the file") from error
    _refuse_unknown(path, "", content, Definition)
    if missing := [one.name for one in fields(Definition) if _is_needed(one) and one.name not in content]:
        raise DataError(f"{path}: lacks {', '.join(missing)}: add it")
    parts = {name: _section(path, name, kind, content.get(name) or {}) for name, kind in _SECTIONS.items()}
    plain = {key: value for key, value in content.items() if key not in _SECTIONS}
    for key in ("base", *(f"variants.{name}" for name in _mapping(path, "variants", plain["variants"]))):
        words = plain["variants"][key.removeprefix("variants.")] if key != "base" else plain["base"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{path}: {key}: {words!r} is not a list of words such as `optim.lr=1e-3`: write one")
    definition = Definition(**parts, **plain)
    if problem := _problem(definition):
        raise DataError(f"{path}: {problem}")
    return definition


def _is_needed(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _mapping(path: Path, where: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{path}: {where or 'the file'}: expected keys and values, found {content!r}: write them")
    return content


def _refuse_unknown(path: Path, where: str, content: Any, kind: type) -> None:
    known = [one.name for one in fields(kind)]
    if unknown := [str(key) for key in _mapping(path, where, content) if key not in known]:
        place = f" of {where}" if where else ""
        raise DataError(f"{path}: unknown key {', '.join(unknown)}{place}: there are {', '.join(known)}")


def _section(path: Path, name: str, kind: type, content: Any) -> Any:
    """Make a section of its class, with the types that the class names."""
    _refuse_unknown(path, name, content, kind)
    defaults = OmegaConf.structured(kind)
    OmegaConf.set_readonly(defaults, False)
    try:
        made: Any = OmegaConf.to_container(OmegaConf.merge(defaults, content))
    except OmegaConfBaseException as error:
        raise DataError(f"{path}: {name}: {str(error).splitlines()[0]}: correct it") from error
    for key, options in (("atlas", AtlasOptions), ("reading", CountOptions)):
        if key in made:
            _refuse_unknown(path, f"{name}.{key}", made[key], options)
            try:
                options(**made[key])
            except (TypeError, OptionError) as error:
                raise DataError(f"{path}: {name}.{key}: {error}: correct it") from error
    return kind(**made)


def _problem(definition: Definition) -> str | None:
    """What cannot work, with a way out; None if all can."""
    cells, split, seeds = definition.cells, definition.split, definition.seeds
    if not isinstance(definition.question, str) or not definition.question.strip():
        return "question is empty: write one sentence"
    if cells.source not in SOURCES:
        return f"cells.source={cells.source!r}: expected one of {', '.join(SOURCES)}"
    if cells.source != ATLAS and (cells.atlas or cells.parts):
        return f"cells.atlas and cells.parts need cells.source: {ATLAS}"
    if cells.source != DATA and cells.reading:
        return f"cells.reading needs cells.source: {DATA}"
    if cells.parts and not (all(share > 0 for share in cells.parts) and abs(sum(cells.parts) - 1) < 1e-6):
        return f"cells.parts={cells.parts}: shares above 0 must add up to 1"
    if split.by not in ("donor", "cell"):
        return f"split.by={split.by!r}: expected donor or cell"
    if not (split.test > 0 and split.validation >= 0 and split.test + split.validation < 1):
        return (
            f"split.validation={split.validation} and split.test={split.test}: test must be above 0, their sum below 1"
        )
    if not definition.variants:
        return "variants is empty: name at least one"
    if bad := [str(name) for name in definition.variants if not _NAME.fullmatch(str(name))]:
        return f"variants: {', '.join(bad)}: a name begins with a letter or digit and may also have . - and _"
    numbers = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not numbers or not seeds or len(set(seeds)) < len(seeds):
        return f"seeds={seeds}: expected different whole numbers from 0 on"
    return None
