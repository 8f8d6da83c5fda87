"""What a run is, in its report: a line for the top of the page, and the configuration for its foot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gm_train.config.schema import Config
from gm_train.train.report.page_parts import notes, table, text

Row = dict[str, Any]


def summary(config: Config, starts: Sequence[Row]) -> str:
    """Say in a line what is trained on what."""
    model, objective = config.model, config.objective
    if config.task.name == "classify":
        learned = f"learns the label {config.task.label!r}{', frozen' if config.task.frozen else ''}"
    else:
        learned = f"objective {objective.language}"
        if objective.gamma and objective.pathways:
            learned += f" + {objective.gamma:g} x pathway loss ({Path(objective.pathways).name})"
    parts = [f"{model.arch} {model.n_layers} x {model.d_model}, {learned}; cells of {config.data.store}"]
    if starts:
        start = starts[-1]
        hardware = ", ".join(dict.fromkeys(start.get("gpus") or [])) or str(start.get("processor"))
        ranks = "1 rank" if start["ranks"] == 1 else f"{start['ranks']:,} ranks"
        parts.append(f"{ranks} on {hardware}, {config.trainer.precision}")
    return "; ".join(parts)


def settings_section(config: Config, run_dir: Path, starts: Sequence[Row]) -> list[str]:
    """Format the settings that differ from the defaults, the machine of the last start, and the whole configuration."""
    defaults, lines = asdict(Config()), []
    for section, settings in asdict(config).items():
        lines += [
            [f"{section}.{key}", str(value), str(defaults[section][key])]
            for key, value in settings.items()
            if value != defaults[section][key]
        ]
    parts = ["<h2>Configuration</h2>", table("Settings that differ from the defaults", _HEADINGS, lines)]
    if starts:
        start = starts[-1]
        hardware = ", ".join([str(start.get("processor")), f"{start.get('cpus')} CPUs", *start.get("gpus", [])])
        revision = (start.get("git") or "unknown")[:12]
        last = f"Last start {start.get('time')} at step {start['step']:,}; {hardware}; revision {revision}"
        parts += notes([last])
    whole = text((run_dir / "config.yaml").read_text())
    return [*parts, f"<details><summary>config.yaml in full</summary><pre>{whole}</pre></details>"]


_HEADINGS = ("setting", "value", "default")
