"""Turn YAML files and key=value words into a checked configuration, and report every problem at once."""

import copy
import difflib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_shards.errors import DataError
from data_shards.files.kinds import CHECKPOINT, CORPUS, COUNTS, GENE_SETS, MEDIANS, RUN, STORE, TO_A_STORE, kind_of
from gm_train.config.check import ConfigError, config_problems, leaves
from gm_train.config.other_names import advice_on_name, advice_on_value
from gm_train.config.schema import Config

DEFAULTS: dict[str, Any] = dict(leaves(OmegaConf.to_container(OmegaConf.structured(Config))))


def _from_yaml(path: Path) -> list[tuple[str, Any]]:
    """Keys and values of a file. An empty section adds nothing.

    Raises:
        ValueError: the file cannot be read as sections of settings.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"is not YAML ({' '.join(str(error).split())})") from error
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"expected sections such as `model:`, found {type(content).__name__}")
    sections = {key.split(".")[0] for key in DEFAULTS}
    return [(key, value) for key, value in leaves(content or {}) if not (key in sections and value is None)]


def _from_word(word: str) -> list[tuple[str, Any]]:
    """Key and value of `key=value`. Settings that are text take it unchanged; other values are read as YAML.

    Raises:
        ValueError: the word is not `key=value`, or its value is not YAML.
    """
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ValueError(f"neither a .yaml file nor key=value{_instead_of(word)}")
    if isinstance(DEFAULTS.get(key), str):
        return [(key, text)]
    try:
        return [(key, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"])]  # type: ignore[call-overload,index]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"the value is not YAML ({' '.join(str(error).split())})") from error


def _instead_of(word: str) -> str:
    """What to write instead of a word that is only a path; empty if that is not known."""
    path = Path(word)
    kind = kind_of(path)
    instead = {
        STORE: f"data.store={word}",
        RUN: str(path / "config.yaml"),
        CHECKPOINT: str(path / "config.yaml"),
        GENE_SETS: f"objective.pathways={word}",
    }
    if kind in instead:
        return f": it is {kind}: write {instead[kind]}"
    return f": it is {kind}: {TO_A_STORE[kind]}" if kind in (MEDIANS, COUNTS, CORPUS) else ""


def _merge(sources: list[tuple[str, list[tuple[str, Any]]]]) -> tuple[Config, list[str]]:
    """Set keys over the defaults one by one: given a whole file, OmegaConf would stop at its first problem."""
    merged: DictConfig = OmegaConf.structured(Config)
    problems = []
    for source, pairs in sources:
        for key, value in pairs:
            if isinstance(DEFAULTS.get(key), str) and not isinstance(value, str):
                # YAML reads `off` as false and `2024_01` as a number.
                advice = advice_on_value(key, value) or "put it in quotes"
                problems.append(f"{source}: {key}: {value!r} is not text: {advice}")
                continue
            try:
                OmegaConf.update(merged, key, value, merge=False)
                OmegaConf.select(merged, key)
            except (OmegaConfBaseException, AttributeError, KeyError) as error:
                problems.append(f"{source}: {_explain(key, value, error)}")
                if key in DEFAULTS:
                    OmegaConf.update(merged, key, DEFAULTS[key], merge=False)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config, problems


def _explain(key: str, value: Any, error: Exception) -> str:
    if key in DEFAULTS:
        advice = advice_on_value(key, value)
        return f"{key}={value!r}: {str(error).splitlines()[0]}{f' ({advice})' if advice else ''}"
    return f"unknown key {key} ({advice_on_key(key)})"


def advice_on_key(key: str) -> str:
    """What to write instead of a key that is no setting, such as "is it optim.lr?"."""
    last = key.rsplit(".", 1)[-1]
    near = [name for name in DEFAULTS if name.rsplit(".", 1)[-1] == last or name.startswith(f"{key}.")]
    if not near and (advice := advice_on_name(key)) is not None:
        return advice
    if not near:
        # Only the last part is compared: keys of one section are alike by their section alone.
        close = difflib.get_close_matches(last, {name.rsplit(".", 1)[-1] for name in DEFAULTS}, 1, 0.75)
        near = [name for one in close for name in DEFAULTS if name.rsplit(".", 1)[-1] == one]
    return f"is it {', '.join(near[:3])}?" if near else "`gm-train fit --settings` lists all"


def flat(config: Config) -> dict[str, Any]:
    """The settings by their full names, such as `optim.lr`."""
    return {f"{section}.{key}": value for section, keys in asdict(config).items() for key, value in keys.items()}


def with_absolute_paths(config: Config) -> Config:
    """Return a copy with absolute paths, so that it is right from any working directory. URLs and empty paths stay."""
    config = copy.deepcopy(config)
    paths = ((config.run, "dir"), (config.data, "store"), (config.objective, "pathways"), (config.model, "init_from"))
    for section, key in paths:
        path = getattr(section, key)
        if path and "://" not in path:
            # Symbolic links stay: a shared folder may have the same name on every node and lead to different paths.
            setattr(section, key, os.path.abspath(path))
    return config


def load_config(*sources: str | Path) -> Config:
    """Merge YAML files and `key=value` words over the defaults, left to right, and check the result.

    Raises:
        ConfigError: lists all files that cannot be read, unknown keys, wrong types and impossible combinations.
    """
    config, unread, unfit = _load([str(source) for source in sources])
    unworkable = config_problems(config)
    # A setting that seems empty may be set in the file that could not be read.
    problems = unread + unfit + [problem for problem in unworkable if not (unread and " is empty" in problem)]
    if problems:
        raise ConfigError(problems)
    return config


def load_cluster(words: list[str]) -> Config:
    """Load the settings of jobs that train nothing: files as in `load_config`, and words `cluster.KEY=value` only.

    Raises:
        ConfigError: lists all files that cannot be read, unknown keys, wrong types and other words.
    """
    config, unread, unfit = _load(words)
    others = [word for word in words if "=" in word and not word.startswith("cluster.")]
    problems = (
        unread + unfit + [f"{word}: only settings of the cluster (cluster.KEY=value) count here" for word in others]
    )
    if problems:
        raise ConfigError(problems)
    return config


def _load(words: list[str]) -> tuple[Config, list[str], list[str]]:
    """Return the merged settings, the words that could not be read, and the keys and values that do not fit."""
    sources, unread = [], []
    for word in words:
        is_file = "=" not in word and word.endswith((".yaml", ".yml"))
        try:
            sources.append((word, _from_yaml(Path(word)) if is_file else _from_word(word)))
        except ValueError as error:
            unread.append(f"{word}: {error}")
    config, unfit = _merge(sources)
    return config, unread, unfit


def config_from_file(path: Path) -> Config:
    """Read a resolved configuration, as a run or a checkpoint keeps it.

    Raises:
        DataError: the file cannot be read, or is not a configuration of this version.
    """
    try:
        config, problems = _merge([(str(path), _from_yaml(path))])
    except ValueError as error:
        raise DataError(f"{path}: {error}: expected the configuration of a run or a checkpoint") from error
    if problems:
        raise DataError(f"{path}: not a configuration of this version: {'; '.join(problems)}")
    return config


def config_from_settings(settings: Mapping[str, Any]) -> Config:
    """Make a configuration from settings by their full names, as `flat` returns them.

    Raises:
        DataError: a setting is unknown or has another type in this version.
    """
    config, problems = _merge([("settings", list(settings.items()))])
    if problems:
        raise DataError(f"not a configuration of this version: {'; '.join(problems)}")
    return config
