"""Definitions of ablations are YAML files: find and read one."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError, OptionError
from data_shards.simulate.atlas_options import AtlasOptions
from gm_train.ablation.definition import FOLDER, Cells, Definition, Scoring, Split, StoreChoice
from gm_train.ablation.definition_problem import definition_problem

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
    for name in (names := _mapping(path, "variants", plain["variants"])):
        if not isinstance(name, str):
            raise DataError(f"{path}: variants: {name!r} is no text in YAML: put it in quotes")
    for key in ("base", *(f"variants.{name}" for name in names)):
        words = plain["variants"][key.removeprefix("variants.")] if key != "base" else plain["base"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{path}: {key}: {words!r} is not a list of words such as `optim.lr=1e-3`: write one")
    _mapping(path, "compare", plain.setdefault("compare", {}))
    definition = Definition(**parts, **plain)
    if problem := definition_problem(definition):
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
