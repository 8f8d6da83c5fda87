"""Run the count of a layer's traffic and write `traffic.json` and `traffic.md`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gm_train.bench.results import made_with, write_results
from gm_train.bench.tables import table, versions
from gm_train.bench.traffic.traffic import kernels_to_count, layer_traffic, rows_of
from gm_train.config.check import ConfigError
from gm_train.config.schema import Config
from gm_train.model.kernels import scan_kernels

#: Tokens of a micro-batch of the presets: 24 rows of 2,048.
TOKENS = 49_152
_PACKAGES = ("torch", "triton", "mamba-ssm", "gm-train")

Row = dict[str, Any]


def run_traffic(config: Config, tokens: int, out: Path, asked: Sequence[str]) -> list[Path]:
    """Count bytes and launches of one layer with each kernel that can be counted here.

    Args:
        config: model and precision.
        tokens: of a micro-batch.
        out: folder for the results; made if it is missing.
        asked: the command line after `gm-train`.

    Returns:
        The paths of `traffic.json` and `traffic.md`.

    Raises:
        ConfigError: the layer of the model cannot be counted, or there is less than one token.
    """
    problems = []
    if tokens < 1:
        problems.append(f"--tokens-per-step {tokens}: must be at least 1")
    if config.model.arch == "transformer" or config.model.mixer != "mamba2":
        problems.append(
            f"--traffic counts layers of model.mixer=mamba2 with model.arch=bimamba or mamba, not "
            f"model.arch={config.model.arch} with model.mixer={config.model.mixer}"
        )
    if problems:
        raise ConfigError(problems)
    rows, length = rows_of(tokens)
    results: Row = {
        "made": made_with(asked, _PACKAGES),
        "model": asdict(config.model),
        "precision": config.trainer.precision,
        "rows": rows,
        "length": length,
        "kernels": {
            kernel: [
                asdict(part) | {"launches": part.launches, "bytes": part.n_bytes}
                for part in layer_traffic(config.model, tokens, config.trainer.precision, kernel)
            ]
            for kernel in kernels_to_count()
        },
        "left_out": [] if scan_kernels.package_problem() is None else ["mamba_ssm: not installed, so not counted."],
    }
    out.mkdir(parents=True, exist_ok=True)
    return write_results(out, results, render_traffic, "traffic")


def render_traffic(results: Row) -> str:
    """Render the counts, one table for each kernel."""
    made, model = results["made"], results["model"]
    parts = [
        "# gm-train bench model --traffic",
        f"`{made['command']}`",
        f"{made['date']}; Python {made['python']}, " + versions(made["packages"], made["git"]),
        f"One layer of width {model['d_model']} ({model['aggregation']}), {results['rows']} rows of "
        f"{results['length']:,} tokens, {results['precision']}, not compiled. Counts of operations on fake tensors, "
        "not times: each operation reads its inputs and writes its outputs once.",
    ]
    for kernel, rows in results["kernels"].items():
        parts += [f"## model.kernel={kernel}", _table(rows)]
    parts += results["left_out"]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Row]) -> str:
    header = ["part", "GB forward", "launches", "GB backward", "launches", "GB", "launches"]
    keys = ("forward_bytes", "forward_launches", "backward_bytes", "backward_launches", "bytes", "launches")
    total: Row = {"part": "sum"} | {key: sum(row[key] for row in rows) for key in keys}
    return table(
        header,
        [
            [row["part"], *(f"{row[key] / 1e9:.2f}" if key.endswith("bytes") else str(row[key]) for key in keys)]
            for row in [*rows, total]
        ],
    )
