"""Find every value and combination of settings that cannot work."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from gm_train.config.other_names import advice_on_value
from gm_train.config.parts import STRATEGIES, TABLES
from gm_train.config.schema import Config


class ConfigError(Exception):
    """A configuration that cannot be used; the message lists every problem. Exit code 2.

    Attributes:
        everywhere: whether every rank of a run finds the same problems, so that one report is enough.
    """

    def __init__(self, problems: list[str], everywhere: bool = False) -> None:
        self.everywhere = everywhere
        super().__init__("\n".join(["the configuration cannot be used:", *(f"  - {problem}" for problem in problems)]))


#: Settings whose value is itself a mapping: `leaves` does not look inside.
_MAPPINGS = ("data.weights",)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the value of every setting in nested mappings, such as `("optim.lr", 5e-4)`."""
    if isinstance(node, dict) and prefix not in _MAPPINGS:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


#: What `tracking.loggers` may name.
LOGGERS = ("mlflow", "tensorboard", "wandb", "csv")

_CHOICES: dict[str, Iterable[str]] = {
    "model.norm": ("none", "pre"),
    "model.kernel": ("auto", "torch", "mamba_ssm"),
    "trainer.precision": ("fp32", "bf16"),
    "task.name": ("pretrain", "classify"),
    "evaluation.best_by": ("auto", "masked", "missing", "knn"),
}
_POSITIVE = (
    "data.lanes", "data.row_length", "data.group_cells", "data.cache_mb",
    "model.d_model", "model.n_layers", "model.d_state", "model.d_conv", "model.expand",
    "model.head_dim", "model.chunk", "model.n_heads", "model.d_ff", "objective.temperature", "optim.lr", "optim.eps",
    "optim.clip",
    "task.min_cells", "task.head_layers", "task.head_width", "task.head_lr_factor",
    "trainer.max_steps", "trainer.validation_cells", "evaluation.cells", "checkpoint.every_steps",
    "checkpoint.keep_last",
)  # fmt: skip
_NOT_NEGATIVE = (
    "data.workers", "data.max_damaged_chunks", "objective.gamma", "optim.weight_decay", "optim.warmup_steps",
    "trainer.validate_every_steps", "trainer.patience", "trainer.max_bad_steps", "trainer.max_rollbacks", "run.seed",
    "evaluation.every_steps",
)  # fmt: skip
_SHARES = ("objective.random_rate", "optim.min_lr_ratio")


def config_problems(config: Config) -> list[str]:
    """List every value and combination that cannot work, one sentence each."""
    values = dict(leaves(OmegaConf.to_container(OmegaConf.structured(config))))
    # `ddp` on one rank is `single`; nobody asks for it by name.
    strategies = ["auto", *(name for name in STRATEGIES if name != "single")]
    problems = [
        f"{key}={values[key]}: expected {' | '.join(choices)}{_hint(key, values[key])}"
        for key, choices in {**TABLES, "trainer.strategy": strategies, **_CHOICES}.items()
        if values[key] not in choices
    ]
    problems += [f"{key}={value}: must be finite" for key, value in values.items() if not _finite(value)]
    problems += [f"{key}={values[key]}: must be greater than 0" for key in _POSITIVE if not values[key] > 0]
    problems += [f"{key}={values[key]}: must not be negative" for key in _NOT_NEGATIVE if not values[key] >= 0]
    problems += [f"{key}={values[key]}: must lie in 0 … 1" for key in _SHARES if not 0 <= values[key] <= 1]
    if not config.run.dir:
        problems.append("run.dir is empty: name a directory for the run")
    if not config.data.store:
        problems.append("data.store is empty: name a store made by `gm-train data shards`")
    if "://" in config.model.init_from:
        problems.append(f"model.init_from={config.model.init_from}: must be a local checkpoint or run directory")
    mlflow = config.tracking.mlflow
    if mlflow not in ("auto", "none") and "://" not in mlflow:
        problems.append(f"tracking.mlflow={mlflow}: expected auto | none | a tracking URI with ://")
    for logger in config.tracking.loggers:
        if logger not in LOGGERS:
            problems.append(f"tracking.loggers: {logger!r} is not one of {', '.join(LOGGERS)}")
    for entry in config.trainer.callbacks:
        try:
            callback_entry(entry)
        except ValueError as error:
            problems.append(f"trainer.callbacks: {error}")
    return problems + _combinations(config) + _task(config) + _evaluation(config)


def callback_entry(entry: Any) -> tuple[str, dict[str, Any]]:
    """Split an entry of `trainer.callbacks` into the name of the class and its keyword arguments.

    Raises:
        ValueError: it is neither `package.module:Class` nor a mapping of that to arguments.
    """
    pairs = {entry: {}} if isinstance(entry, str) else entry
    if isinstance(pairs, Mapping) and len(pairs) == 1:
        ((target, arguments),) = pairs.items()
        module, _, name = str(target).partition(":")
        if module and name and isinstance(arguments or {}, Mapping):
            return str(target), {str(key): value for key, value in (arguments or {}).items()}
    raise ValueError(f"{entry!r}: expected package.module:Class or package.module:Class: {{argument: value}}")


def _hint(key: str, value: str) -> str:
    advice = advice_on_value(key, value)
    return f" ({advice})" if advice else ""


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _combinations(config: Config) -> list[str]:
    model, objective, data, optim, trainer = config.model, config.objective, config.data, config.optim, config.trainer
    problems = []
    if model.arch == "transformer":
        if model.n_heads > 0 and (model.d_model % model.n_heads or model.d_model // model.n_heads % 2):
            problems.append(
                f"model.n_heads={model.n_heads}: model.d_model / model.n_heads must be a whole, even number, not "
                f"{model.d_model / model.n_heads:g}"
            )
    elif model.head_dim > 0 and model.expand * model.d_model % model.head_dim:
        problems.append(
            f"model.head_dim={model.head_dim}: does not divide model.expand * model.d_model = "
            f"{model.expand * model.d_model}"
        )
    if model.gate_per_layer and model.aggregation == "head_gate":
        problems.append("model.gate_per_layer with model.aggregation=head_gate: head_gate already has one per layer")
    if model.aggregation == "head_gate" and model.mixer != "mamba2":
        problems.append(
            f"model.aggregation=head_gate with model.mixer={model.mixer}: the mamba2 mixer alone joins its directions "
            "head by head; choose another aggregation"
        )
    if objective.language == "next_token" and model.arch != "mamba" and not objective.paper_compat:
        problems.append(
            f"objective.language=next_token with model.arch={model.arch}: every position has already seen the token "
            "that it must predict; use model.arch=mamba or objective.language=missing (objective.paper_compat=true "
            "trains it anyway, as published)"
        )
    if objective.language == "masked" and not 0 < objective.mask_rate < 1:
        problems.append(f"objective.mask_rate={objective.mask_rate}: must lie between 0 and 1")
    if objective.language == "missing" and not (
        len(objective.shown) == 2 and 0 < objective.shown[0] <= objective.shown[1] < 1
    ):
        problems.append(f"objective.shown={objective.shown}: expected [smallest, largest] share, between 0 and 1")
    if len(objective.pathway_size) != 2 or not 2 <= objective.pathway_size[0] <= objective.pathway_size[1]:
        problems.append(f"objective.pathway_size={objective.pathway_size}: expected [smallest, largest], at least 2")
    if objective.pathway_genes < 2:
        problems.append(f"objective.pathway_genes={objective.pathway_genes}: a pair needs at least 2")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        problems.append(f"optim.betas={optim.betas}: expected two numbers in 0 … 1 (1 excluded)")
    # None: the run takes trainer.max_steps of its first start, and `fit` checks again then.
    if optim.schedule_steps is not None and optim.schedule_steps < max(1, optim.warmup_steps):
        problems.append(
            f"optim.warmup_steps={optim.warmup_steps}: is longer than the schedule of {optim.schedule_steps} steps "
            "(optim.schedule_steps, or trainer.max_steps): the peak learning rate would never be reached"
        )
    for name, weight in data.weights.items():
        if weight < 0:
            problems.append(f"data.weights={{{name}: {weight}}}: must not be negative; 0 leaves the data set out")
    for key, count in (
        ("data.rows_per_lane", data.rows_per_lane),
        ("data.micro_rows", data.micro_rows),
        ("data.pool_blocks", data.pool_blocks),
        ("trainer.devices", trainer.devices),
        ("trainer.num_nodes", trainer.num_nodes),
    ):
        if count is not None and count < 1:
            problems.append(f"{key}={count}: must be greater than 0")
    if data.lanes > 0 and all(number is None or number > 0 for number in (data.rows_per_lane, data.micro_rows)):
        problems += rank_problems(config, max(1, trainer.devices or 1) * max(1, trainer.num_nodes or 1))
    return problems


def rank_problems(config: Config, world_size: int) -> list[str]:
    """Say why a step cannot be divided among `world_size` ranks, and which numbers would fit; empty if it can."""
    data = config.data
    if data.lanes % world_size:
        return [
            f"{world_size} ranks: do not divide data.lanes={data.lanes}, which the ranks share; these numbers of "
            f"ranks do: {_divisors(data.lanes)}"
        ]
    if data.rows_per_lane is None or data.micro_rows is None:
        return []  # chosen to fit
    rows = data.step_rows // world_size
    if rows % data.micro_rows:
        return [
            f"data.micro_rows={data.micro_rows}: does not divide the {rows} rows that each of {world_size} ranks takes "
            f"in a step (data.lanes * data.rows_per_lane / ranks); null chooses one; these do: {_divisors(rows)}"
        ]
    return []


def _task(config: Config) -> list[str]:
    task, trainer = config.task, config.trainer
    problems = []
    if trainer.patience and not trainer.validate_every_steps:
        problems.append(f"trainer.patience={trainer.patience}: counts validations: set trainer.validate_every_steps")
    if task.name != "classify":
        if task.label:
            problems.append(f"task.label={task.label}: is learned with task.name=classify only; set that too")
        return problems
    if not task.label:
        problems.append("task.label is empty: name the column of obs to learn")
    if not 0 < task.max_error < 1:
        problems.append(f"task.max_error={task.max_error}: must lie between 0 and 1")
    if config.objective.pathways:
        problems.append(
            f"objective.pathways={config.objective.pathways}: task.name=classify learns the label alone; set it to "
            "nothing (objective.pathways=)"
        )
    if trainer.strategy.startswith("zero"):
        problems.append(
            f"trainer.strategy={trainer.strategy}: cannot keep weights that are not trained, such as the output layer "
            "with task.name=classify; use ddp or fsdp2"
        )
    return problems


def _evaluation(config: Config) -> list[str]:
    evaluation = config.evaluation
    problems = []
    if evaluation.every_steps and config.task.name == "classify":
        problems.append(
            f"evaluation.every_steps={evaluation.every_steps}: its scores are of pretraining; with task.name=classify, "
            "validations score the label (trainer.validate_every_steps); set it to 0"
        )
    if evaluation.best_by == "knn" and not evaluation.label:
        problems.append("evaluation.best_by=knn: needs cell types: set evaluation.label to a column of obs")
    return problems


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
