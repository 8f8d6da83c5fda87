"""The layout of the published GeneMamba weights (arXiv 2504.16956), as far as we could read it, and ours beside it.

In each layer of the published model, one Mamba-2 with its residual connection runs over the cell and over the reversed
cell, and `aggr`, one for all layers, joins the two. That is our Bi-Mamba without a norm before the mixer, so every
tensor has a counterpart of the same shape. Only the two special tokens stand in other places.
"""

import re
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import FIRST_GENE, MASK, PAD
from gm_train.config.schema import ModelConfig
from gm_train.weights.weight_files import State

#: Tokens of the two special tokens in files that we write. The published code pads with token 1.
SPECIALS = {"<mask>": 0, "<pad>": 1}
_PLAIN = {
    "embeddings.weight": "embedding.weight",
    "mamba_mixer.aggr.weight": "stack.aggregations.0.proj.weight",
    "mamba_mixer.aggr.bias": "stack.aggregations.0.proj.bias",
    "norm_f.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
_MIXER = ("in_proj.weight", "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D", "norm.weight", "out_proj.weight")
#: Classes for transformers put a prefix such as `model.` before the names.
_NAME = re.compile(r"(?:.*\.)?((?:embeddings|norm_f|lm_head)\.\w+|mamba_mixer\..*)")
_LAYER = re.compile(r"mamba_mixer\.layers\.(\d+)\.mamba\.(.+)")
#: Aggregations by whether they have a projection, `aggr`.
AGGREGATIONS = {True: ("gate", "concat"), False: ("mean", "sum")}
#: Sizes that the published code gives every layer.
_FIXED = {"d_state": 64, "d_conv": 4, "expand": 2, "head_dim": 64}


def is_published(state: State) -> bool:
    """Whether names of the published layout occur."""
    return any(_LAYER.search(name) for name in state)


def from_published(path: Path, state: State) -> tuple[State, list[str]]:
    """Rename the tensors to ours; rows stay in their order.

    Args:
        path: the file, for messages.
        state: its tensors.

    Returns:
        The tensors under our names, and the names of others, such as those of a classifier, which are left out.

    Raises:
        DataError: a tensor is missing, occurs twice or is not known within the layers.
    """
    found: State = {}
    others = []
    for name, tensor in state.items():
        match = _NAME.fullmatch(name)
        if match is None:
            others.append(name)
            continue
        ours = _our_name(match[1])
        if ours is None:
            raise DataError(f"{path}: {name} is not part of the layout: its layers are not plain Mamba-2 layers")
        if ours in found:
            raise DataError(f"{path}: {match[1]} occurs twice, under two prefixes: save one model a file")
        found[ours] = tensor
    n_layers = len({name.split(".")[2] for name in found if name.startswith("stack.layers.")})
    needed = [ours for theirs, ours in _PLAIN.items() if ".aggr." not in theirs]
    needed += [f"stack.layers.{i}.mixer.{name}" for i in range(n_layers) for name in _MIXER]
    gate = [ours for theirs, ours in _PLAIN.items() if ".aggr." in theirs]
    if any(name in found for name in gate):
        needed += gate
    missing = [_published_name(name) for name in needed if name not in found]
    if missing:
        raise DataError(
            f"{path}: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} missing: the published layout has "
            f"{', '.join(_PLAIN)} and Mamba-2 layers"
        )
    return found, others


def _our_name(name: str) -> str | None:
    if layer := _LAYER.fullmatch(name):
        return f"stack.layers.{layer[1]}.mixer.{layer[2]}" if layer[2] in _MIXER else None
    return _PLAIN.get(name)


def _published_name(ours: str) -> str:
    if ours.startswith("stack.layers."):
        _, _, number, _, name = ours.split(".", 4)
        return f"mamba_mixer.layers.{number}.mamba.{name}"
    return next(theirs for theirs, own in _PLAIN.items() if own == ours)


def sizes_of(path: Path, state: State, config: dict[str, Any], aggregation: str | None) -> ModelConfig:
    """Find the sizes and the aggregation of weights under our names.

    Args:
        path: the file, for messages.
        state: result of `from_published`.
        config: content of the `config.json` beside the file; empty if there is none.
        aggregation: the one that the user names; None takes `mode` of `config`.

    Raises:
        DataError: shapes contradict each other, or nothing says which aggregation it is.
    """
    first = "stack.layers.0.mixer."
    d_model, n_heads = state["embedding.weight"].shape[-1], len(state[first + "dt_bias"])
    d_inner = state[first + "out_proj.weight"].shape[-1]
    channels, taps = state[first + "conv1d.weight"].shape[0], state[first + "conv1d.weight"].shape[-1]
    n_layers = len({name.split(".")[2] for name in state if name.startswith("stack.layers.")})
    if d_inner % d_model or d_inner % n_heads or (channels - d_inner) % 2 or channels <= d_inner:
        raise DataError(
            f"{path}: d_model {d_model}, inner width {d_inner}, {n_heads} heads and {channels} channels of the "
            "convolution do not fit a Mamba-2 with one group"
        )
    n_rows = len(state["embedding.weight"])
    if state["output.weight"].shape != (n_rows, d_model) or state["output.bias"].shape != (n_rows,):
        raise DataError(
            f"{path}: lm_head is of shape {tuple(state['output.weight'].shape)}, embeddings of "
            f"{tuple(state['embedding.weight'].shape)}: they do not belong together"
        )
    choices = AGGREGATIONS["stack.aggregations.0.proj.weight" in state]
    chosen = aggregation or config.get("mode")
    if chosen not in choices:
        said = f"--aggregation {aggregation}" if aggregation else f"mode {chosen!r} in config.json"
        source = said if chosen else "no config.json with a mode"
        raise DataError(
            f"{path}: {source}: the shapes fit {' and '.join(choices)}; say which one with "
            f"--aggregation {choices[0]} or --aggregation {choices[1]}"
        )
    return ModelConfig(
        arch="bimamba",
        aggregation=str(chosen),
        norm="none",
        d_model=d_model,
        n_layers=n_layers,
        d_state=(channels - d_inner) // 2,
        d_conv=taps,
        expand=d_inner // d_model,
        head_dim=d_inner // n_heads,
        tie_output=False,
    )


def why_not_published(config: ModelConfig) -> str | None:
    """Say why a model cannot be written in the published layout; None if it can."""
    if config.arch != "bimamba" or config.mixer != "mamba2":
        return (
            f"model.arch={config.arch}, model.mixer={config.mixer}: the published layers are Mamba-2 in both directions"
        )
    if config.norm != "none":
        return f"model.norm={config.norm}: the published layers have no norm before the mixer"
    if config.aggregation not in AGGREGATIONS[True] + AGGREGATIONS[False]:
        return f"model.aggregation={config.aggregation}: the published code has gate, concat, mean and sum"
    if config.gate_per_layer and config.aggregation in AGGREGATIONS[True] and config.n_layers > 1:
        return "model.gate_per_layer=true: the published layout has one aggr for all layers"
    if config.tie_output:
        return "model.tie_output=true: the published output layer has weights of its own"
    return None


def to_published(state: State) -> State:
    """Rename our tensors, and exchange the rows of `<pad>` and `<mask>`, because the published pad is token 1."""
    published = {}
    for name, tensor in state.items():
        if name in ("embedding.weight", "output.weight", "output.bias"):
            tensor = tensor[[MASK, PAD, *range(FIRST_GENE, len(tensor))]]
        published[_published_name(name)] = tensor.contiguous()
    return published


def sizes_in_doubt(config: ModelConfig) -> str | None:
    """Say which sizes the published code would not build by itself; None if there are none."""
    other = [
        f"{key} {getattr(config, key)} (not {size})" for key, size in _FIXED.items() if getattr(config, key) != size
    ]
    return ", ".join(other) or None
