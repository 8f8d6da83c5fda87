"""YAML files and key=value words into a checked configuration, with every problem listed at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_shards.errors import DataError
from gm_train.config import Config


class ConfigError(Exception):
    """A configuration that cannot be used; the message lists every problem. Exit code 2."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(["the configuration cannot be used:", *(f"  - {problem}" for problem in problems)]))
        self.problems = problems


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and (node or not prefix):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _from_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not YAML ({' '.join(str(error).split())})"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected sections such as `model:`, found {type(content).__name__}"])
    return content


def _from_word(word: str) -> dict[str, Any]:
    if "=" not in word:
        raise ConfigError([f"{word!r}: neither a .yaml file nor key=value"])
    return OmegaConf.to_container(OmegaConf.from_dotlist([word]))  # type: ignore[return-value]


def _merge(sources: list[tuple[str, dict[str, Any]]]) -> Config:
    merged: DictConfig = OmegaConf.structured(Config)
    problems = []
    for source, content in sources:
        # Leaf by leaf, since OmegaConf stops at the first problem of a file.
        for key, value in _leaves(content):
            try:
                OmegaConf.update(merged, key, value, merge=False)
            except (OmegaConfBaseException, AttributeError, KeyError) as error:
                problems.append(f"{source}: {_explain(merged, key, value, error)}")
    if problems:
        raise ConfigError(problems)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def _explain(merged: DictConfig, key: str, value: Any, error: Exception) -> str:
    known = [name for name, _ in _leaves(OmegaConf.to_container(merged))]
    if key in known:
        return f"{key}={value!r}: {str(error).splitlines()[0]}"
    last = key.rsplit(".", 1)[-1]
    near = [name for name in known if name.rsplit(".", 1)[-1] == last or name.startswith(f"{key}.")]
    return f"unknown key {key}" + (f" (is it {', '.join(near[:3])}?)" if near else "")


def load_config(words: list[str]) -> Config:
    """Merge files and `key=value` words over the defaults, left to right, and check the result.

    Raises:
        ConfigError: unknown keys, wrong types or impossible combinations, all of them.
    """
    sources = []
    for word in words:
        is_file = word.endswith((".yaml", ".yml")) and "=" not in word
        sources.append((word, _from_yaml(Path(word)) if is_file else _from_word(word)))
    config = _merge(sources)
    if problems := find_problems(config):
        raise ConfigError(problems)
    return config


def config_from_file(path: Path) -> Config:
    """A resolved configuration as a run or a checkpoint keeps it.

    Raises:
        DataError: the file is not one.
    """
    try:
        return _merge([(str(path), _from_yaml(path))])
    except ConfigError as error:
        raise DataError(f"{path}: not a configuration of this version: {error}") from error


_CHOICES = {
    "model.arch": ("bimamba", "mamba"),
    "model.aggregation": ("gate", "mean", "sum", "concat"),
    "model.norm": ("none", "pre"),
    "model.kernel": ("auto", "torch"),
    "objective.language": ("masked", "next_token"),
    "trainer.strategy": ("auto",),
    "trainer.precision": ("fp32", "bf16"),
}
_POSITIVE = (
    "data.lanes", "data.rows_per_lane", "data.micro_rows", "data.row_length", "data.pool_blocks", "data.group_cells",
    "data.cache_mb", "model.d_model", "model.n_layers", "model.d_state", "model.d_conv", "model.expand",
    "model.head_dim", "model.chunk", "objective.pathway_genes", "objective.temperature", "optim.lr", "optim.eps",
    "optim.clip", "trainer.max_steps", "trainer.validation_cells", "checkpoint.every_steps", "checkpoint.keep_last",
)  # fmt: skip
_NOT_NEGATIVE = (
    "data.workers", "objective.gamma", "optim.weight_decay", "optim.warmup_steps", "trainer.validate_every_steps",
    "trainer.max_bad_steps", "trainer.max_rollbacks", "run.seed",
)  # fmt: skip
_SHARES = ("objective.random_rate", "optim.min_lr_ratio")


def find_problems(config: Config) -> list[str]:
    """Every value and combination that cannot work, as sentences."""
    view = OmegaConf.structured(config)

    def value(key: str) -> Any:
        return OmegaConf.select(view, key)

    problems = [
        f"{key}={value(key)}: expected {' | '.join(choices)}"
        for key, choices in _CHOICES.items()
        if value(key) not in choices
    ]
    problems += [f"{key}={value(key)}: must be greater than 0" for key in _POSITIVE if not value(key) > 0]
    problems += [f"{key}={value(key)}: must not be negative" for key in _NOT_NEGATIVE if not value(key) >= 0]
    problems += [f"{key}={value(key)}: must lie in 0 … 1" for key in _SHARES if not 0 <= value(key) <= 1]
    if problems:
        return problems  # the combinations below take single values for granted

    model, objective, data, optim = config.model, config.objective, config.data, config.optim
    if model.expand * model.d_model % model.head_dim:
        problems.append(
            f"model.head_dim={model.head_dim}: does not divide model.expand * model.d_model = "
            f"{model.expand * model.d_model}"
        )
    if objective.language == "next_token" and model.arch == "bimamba" and not objective.paper_compat:
        problems.append(
            "objective.language=next_token with model.arch=bimamba: every position has already seen the token that it "
            "is to predict; use model.arch=mamba or objective.language=masked (objective.paper_compat=true trains it "
            "all the same, as published)"
        )
    if objective.language == "masked" and not 0 < objective.mask_rate < 1:
        problems.append(f"objective.mask_rate={objective.mask_rate}: must lie between 0 and 1")
    if len(objective.pathway_size) != 2 or not 2 <= objective.pathway_size[0] <= objective.pathway_size[1]:
        problems.append(f"objective.pathway_size={objective.pathway_size}: expected [smallest, largest], at least 2")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        problems.append(f"optim.betas={optim.betas}: expected two numbers in 0 … 1 (1 excluded)")
    if optim.schedule_steps is not None and optim.schedule_steps < 1:
        problems.append(f"optim.schedule_steps={optim.schedule_steps}: must be greater than 0")
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        problems.append(
            f"trainer.devices={config.trainer.devices}, trainer.num_nodes={config.trainer.num_nodes}: this version "
            "trains in one process; both must be 1"
        )
    global_rows = data.lanes * data.rows_per_lane
    if global_rows % data.micro_rows:
        fitting = [rows for rows in range(1, global_rows + 1) if global_rows % rows == 0]
        problems.append(
            f"data.micro_rows={data.micro_rows}: does not divide the {global_rows} rows of a step (data.lanes * "
            f"data.rows_per_lane); these do: {', '.join(map(str, fitting))}"
        )
    if not config.run.dir:
        problems.append("run.dir is empty: name a directory for the run")
    if not data.store:
        problems.append("data.store is empty: name a store made by `gm-train data shards`")
    return problems
