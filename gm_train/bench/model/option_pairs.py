"""Pairs of contenders that differ in one option of a run."""

from dataclasses import replace
from pathlib import Path

from gm_train.bench.model.contenders import Contender, with_trainer
from gm_train.config.schema import Config

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
