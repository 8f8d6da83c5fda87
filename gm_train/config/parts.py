"""The parts of a run that a setting selects by name, and where the class or function of each name is.

To add a part, write it and list it here: configurations then accept its name, and error messages list it. A part is
imported only when it is used. So a configuration can be checked without importing torch, and an optional package is
needed only by runs that select a part that uses it.
"""

import importlib
from typing import Any

#: `model.arch`: the layers, `(config: ModelConfig) -> LayerStack`.
ARCHITECTURES = {
    "bimamba": "gm_train.model.layers:MambaStack",
    "mamba": "gm_train.model.layers:MambaStack",
    "transformer": "gm_train.model.transformer:TransformerStack",
}
#: `model.mixer`: what mixes the tokens of a cell within a layer, `(config: ModelConfig) -> nn.Module`.
MIXERS = {"mamba2": "gm_train.model.mixer:Mamba2Mixer"}
#: `model.aggregation`: how the two directions of a layer are joined, `(d_model: int) -> nn.Module`.
AGGREGATIONS = {
    "gate": "gm_train.model.aggregation:Gate",
    "mean": "gm_train.model.aggregation:Mean",
    "sum": "gm_train.model.aggregation:Sum",
    "concat": "gm_train.model.aggregation:Concat",
    "head_gate": "gm_train.model.aggregation:HeadGate",
}
#: `objective.language`: what a cell shows, what is predicted, and its loss, an `Objective`.
OBJECTIVES = {
    "masked": "gm_train.objective.masking:MASKED",
    "next_token": "gm_train.objective.next_token:NEXT_TOKEN",
    "missing": "gm_train.objective.missing:MISSING",
}
#: `trainer.strategy`: how a step is divided among ranks: a Lightning strategy with `Steps`, made by `(ranks, clip)`.
STRATEGIES = {
    "single": "gm_train.strategies.single:SingleProcess",
    "ddp": "gm_train.strategies.ddp:Ddp",
    "fsdp2": "gm_train.strategies.fsdp2:Fsdp2",
    "zero2": "gm_train.strategies.zero:Zero2",
    "zero3": "gm_train.strategies.zero:Zero3",
}
#: The tables by their settings.
TABLES = {
    "model.arch": ARCHITECTURES,
    "model.mixer": MIXERS,
    "model.aggregation": AGGREGATIONS,
    "objective.language": OBJECTIVES,
    "trainer.strategy": STRATEGIES,
}


def load_part(setting: str, name: str) -> Any:
    """Import the class or function that a setting names.

    Args:
        setting: one of `TABLES`.
        name: the setting's value.

    Raises:
        ValueError: the table does not list the name.
    """
    table = TABLES[setting]
    if name not in table:
        raise ValueError(f"{setting}={name!r} is not one of {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
