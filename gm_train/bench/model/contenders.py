"""The contenders: models that are compared, the ladder from the published layer to ours, and options on and off."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_shards.errors import DataError
from gm_train.bench.model.published import Published
from gm_train.config.schema import Config, ModelConfig
from gm_train.model.compile import prepare_blocks
from gm_train.model.genemamba import GeneMamba
from gm_train.model.kernels.scan_kernels import choose_kernel, scan_sizes
from gm_train.plan.flops import Work, as_computed, training_flops
from gm_train.plan.model_size import n_parameters

GENEMAMBA, PUBLISHED, TRANSFORMER, MIXER = "genemamba", "published", "transformer", "mamba2_transformers"
NAMES = (GENEMAMBA, PUBLISHED, TRANSFORMER, MIXER)
#: Largest relative difference in parameters between the transformer and GeneMamba.
MATCH = 0.01
_D_FF_STEPS = (8, 1)  # prefer feed-forward widths that are multiples of 8, which suit matrix kernels


@dataclass(frozen=True)
class AsPublished:
    """Which properties of the published code a contender keeps.

    Attributes:
        padded: one cell per row, with pads treated as tokens.
        all_positions: a next-token loss at every position instead of only the masked ones.
        whole_logits: compute the logits of all predicted positions at once, not a few rows at a time.
        shared_projection: compute the input projection once, not on both copies (this is a change from the original).
    """

    padded: bool = True
    all_positions: bool = True
    whole_logits: bool = True
    shared_projection: bool = False


@dataclass(frozen=True)
class Contender:
    """One model in the race.

    Attributes:
        name: name in reports.
        config: model, objective, optimizer and trainer settings.
        published: published properties that it keeps; None for our own code.
    """

    name: str
    config: Config
    published: AsPublished | None = None

    @property
    def padded(self) -> bool:
        """Whether rows hold one cell and pads."""
        return self.published is not None and self.published.padded

    @property
    def all_positions(self) -> bool:
        """Whether the loss covers every position."""
        return self.published is not None and self.published.all_positions

    @property
    def whole_logits(self) -> bool:
        """Whether all logits are computed at once."""
        return self.published is not None and self.published.whole_logits

    def build(self, vocabulary_size: int, device: torch.device) -> GeneMamba:
        """Build the model with random weights, as `fit` would prepare it."""
        torch.manual_seed(self.config.run.seed)
        if self.published is None:
            model = GeneMamba(self.config.model, vocabulary_size)
        else:
            model = Published(self.config.model, vocabulary_size, self.published.shared_projection)
        model.to(device)
        prepare_blocks(model, self.config.trainer)
        return model

    def flops_per_token(self, vocabulary_size: int, context: float, targets: float, device: torch.device) -> float:
        """Return the FLOPs of a training step per real token; see `gm_train.plan.flops`.

        Args:
            vocabulary_size: number of tokens.
            context: tokens of a token's cell, averaged over tokens.
            targets: predicted positions per real token; counted up to 1, so that predicted pads are left out.
            device: where it runs.
        """
        twice = self.published is not None and not self.published.shared_projection
        work = Work(context, min(1.0, targets), 2 if twice else 1)
        return training_flops(as_computed(self.config.model, device), vocabulary_size, work)


def matched_transformer(model: ModelConfig, vocabulary_size: int) -> ModelConfig:
    """Return a transformer of the same width with half the layers and, within 1 %, as many parameters.

    `model.d_ff` is kept if it fits; otherwise the nearest multiple of 8 is taken, or else the nearest integer.

    Raises:
        DataError: no feed-forward width gives that many parameters.
    """
    wanted = n_parameters(model, vocabulary_size)

    def count(d_ff: int) -> int:
        return n_parameters(replace(model, arch="transformer", n_layers=layers, d_ff=d_ff), vocabulary_size)

    layers = max(1, model.n_layers // 2)
    narrowest, slope = count(1), count(2) - count(1)
    exact = 1 + (wanted - narrowest) / slope
    widths = (model.d_ff, *(step * max(1, round(exact / step)) for step in _D_FF_STEPS))
    d_ff = next((width for width in widths if abs(count(width) / wanted - 1) <= MATCH), None)
    if d_ff is None:
        raise DataError(
            f"transformer: {layers} layers of width {model.d_model} have {narrowest:,} parameters with a feed-forward "
            f"width of 1, genemamba has {wanted:,}. No width gives the same number within {MATCH:.0%}: choose other "
            "sizes, or leave transformer out of --contenders"
        )
    return replace(model, arch="transformer", n_layers=layers, d_ff=d_ff)


def as_published(config: Config) -> Config:
    """Return the same sizes in the published variant: directions joined by one gate, no norm, no L_pathway."""
    model = replace(
        config.model, arch="bimamba", aggregation="gate", gate_per_layer=False, norm="none", tie_output=False
    )
    return replace(config, model=model, objective=replace(config.objective, pathways=""))


def with_trainer(config: Config, **changes: object) -> Config:
    """Return the configuration with changed trainer settings."""
    return replace(config, trainer=replace(config.trainer, **changes))  # type: ignore[arg-type]


def contenders(config: Config, names: tuple[str, ...], vocabulary_size: int) -> list[Contender]:
    """Return the models of the race, in the order of `names`.

    `MIXER` is skipped: it is a single layer and has a section of its own.

    Args:
        config: settings of genemamba.
        names: some of `NAMES`.
        vocabulary_size: number of tokens.
    """
    make: dict[str, Callable[[], Contender]] = {
        GENEMAMBA: lambda: Contender(GENEMAMBA, config),
        PUBLISHED: lambda: Contender(PUBLISHED, with_trainer(as_published(config), compile=False), AsPublished()),
        TRANSFORMER: lambda: Contender(
            TRANSFORMER, replace(config, model=matched_transformer(config.model, vocabulary_size))
        ),
    }
    return [make[name]() for name in names if name in make]


def ladder(config: Config, compiled: bool, device: torch.device) -> list[Contender]:
    """Return the rungs from the published code to ours; each adds one change to the rung before it.

    Args:
        config: settings of genemamba.
        compiled: whether the last rung is compiled.
        device: where they run; decides the kernel.
    """
    kernel, _ = choose_kernel(config.model.kernel, device, scan_sizes(config.model))
    base = with_trainer(as_published(config), compile=False)
    rungs = [
        Contender("published", base, AsPublished()),
        Contender("+ no pads", base, AsPublished(padded=False)),
        Contender("+ loss on masked positions", base, AsPublished(False, False)),
        Contender("+ loss a few rows at a time", base, AsPublished(False, False, False)),
        Contender("+ one shared projection", base, AsPublished(False, False, False, True)),
        Contender("+ kernel without flips" if kernel == "torch" else "+ flips within the kernel's call alone", base),
    ]
    if compiled:
        rungs.append(Contender("+ compile", with_trainer(base, compile=True)))
    return rungs


#: Option, name of the contender without it, name of the one with it.
Pair = tuple[str, str, str]


def option_pairs(config: Config, compiled: bool, gmt: Path) -> tuple[list[Pair], list[Contender]]:
    """Return the comparisons and the contenders that they need.

    Args:
        config: the model; its own values of the options are ignored.
        compiled: whether to include torch.compile.
        gmt: gene sets for L_pathway.

    Returns:
        Tuples of option, name of the contender without it and name of the one with it; and the contenders.
    """
    plain = with_trainer(
        replace(
            config, optim=replace(config.optim, fused=True), objective=replace(config.objective, pathways="")
        ),
        compile=False, activation_checkpointing=False, precision="fp32",
    )  # fmt: skip
    plain = replace(plain, model=replace(plain.model, arch="bimamba", aggregation="gate"))
    base = "eager fp32, fused AdamW, gate"
    runs = {
        base: plain,
        "checkpointing": with_trainer(plain, activation_checkpointing=True),
        "bf16": with_trainer(plain, precision="bf16"),
        "AdamW, not fused": replace(plain, optim=replace(plain.optim, fused=False)),
        "head_gate": replace(plain, model=replace(plain.model, aggregation="head_gate")),
        "L_pathway": replace(plain, objective=replace(plain.objective, pathways=str(gmt))),
    }
    chosen: list[Pair] = [
        ("trainer.activation_checkpointing=true", base, "checkpointing"),
        ("trainer.precision=bf16", base, "bf16"),
        ("optim.fused=true", "AdamW, not fused", base),
        ("model.aggregation=head_gate", base, "head_gate"),
        ("objective.pathways (L_pathway)", base, "L_pathway"),
    ]
    if compiled:
        runs["compile"] = with_trainer(plain, compile=True)
        runs["compile and bf16"] = with_trainer(plain, compile=True, precision="bf16")
        chosen[:0] = [
            ("trainer.compile=true", base, "compile"),
            ("trainer.compile=true, trainer.precision=bf16", base, "compile and bf16"),
        ]
    return chosen, [Contender(name, run) for name, run in runs.items()]
