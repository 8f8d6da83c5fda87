"""The report of a run: its scores, its training and its configuration, in one file that needs no network."""

import html
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from gm_train.config.load import config_from_file
from gm_train.run.curves import joined, png
from gm_train.run.records import METRICS, SKIPPED, read_rows
from gm_train.run.starts import read_starts
from gm_train.train.panel_summary import summarize_panel
from gm_train.train.report.label_section import label_section
from gm_train.train.report.page_parts import notes, picture, table, text
from gm_train.train.report.page_style import STYLE
from gm_train.train.report.scores_section import scores_section
from gm_train.train.report.settings_section import settings_section, summary
from gm_train.train.report.training_section import Records, training_section

REPORT, EVAL_DIR = "report.html", "eval"


@dataclass(frozen=True)
class Report:
    """A report that is not written yet.

    Attributes:
        title: the name of the run.
        body: what the page shows, as HTML.
        pictures: the curves by the names of their PNG files; the page holds them as well.
    """

    title: str
    body: str
    pictures: dict[str, bytes]

    def page(self, more: str = "") -> str:
        """The whole page.

        Args:
            more: HTML after what the page shows.
        """
        title = html.escape(self.title)
        return "\n".join(
            [
                "<!doctype html><html lang=en><head><meta charset=utf-8>",
                "<meta name=viewport content='width=device-width, initial-scale=1'>",
                f"<title>{title}: gm-train report</title><style>{STYLE}</style></head><body>",
                f"<main>{self.body}</main>{more}",
                "</body></html>\n",
            ]
        )


def make_report(run_dir: Path) -> Report:
    """Make the report of a run from its records; nothing is written.

    Args:
        run_dir: holds `config.yaml` and `metrics.jsonl`, and `eval/` if the run was evaluated.

    Raises:
        DataError: the directory holds no run, no step was recorded, or a record is damaged.
    """
    rows = read_rows(run_dir / METRICS)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise DataError(f"{run_dir}: no step in {METRICS} to report: train with `gm-train fit` first")
    config = config_from_file(run_dir / "config.yaml")
    starts = read_starts(run_dir)
    records = Records(rows, read_rows(run_dir / SKIPPED), starts, config.trainer.precision)
    training, panels = training_section(records)
    panel = summarize_panel(run_dir, rows)
    title = run_dir.resolve().name
    is_of_label, evaluation = config.task.name == "classify", run_dir / EVAL_DIR
    last = steps[-1]
    parts = [
        f"<h1>{text(title)}</h1>",
        f"<p class=sub>gm-train run, {last['step']:,} steps, {last['position']:,} cells trained</p>",
        f"<p class=sub>{text(summary(config, starts))}</p>",
        *(label_section(run_dir) if is_of_label else []),
        *(
            scores_section(run_dir, evaluation, last["step"])
            if (evaluation / "eval.json").is_file() or not is_of_label
            else []
        ),
    ]
    pictures = {"curves.png": png(joined(panels))}
    if panel is not None:
        shown = [picture(drawn, f"panel {key}") for key, drawn in panel.pictures.items()]
        parts += [
            "<h2>What is learned</h2>",
            table(panel.caption, panel.headings, panel.lines),
            f"<div class=panels>{''.join(shown)}</div>",
            *notes(panel.notes),
        ]
        pictures |= {f"panel-{key}.png": drawn for key, drawn in panel.pictures.items()}
    parts += ["<h2>Training</h2>", *training, *settings_section(config, run_dir, starts)]
    return Report(title, "\n".join(parts), pictures)


def write_report(run_dir: Path) -> Path:
    """Write `report.html`, and its curves as PNG files beside it, into a run directory.

    Returns:
        The path of the page.

    Raises:
        DataError: as from `make_report`.
    """
    report = make_report(run_dir)
    for name, data in report.pictures.items():
        (run_dir / name).write_bytes(data)
    page = run_dir / REPORT
    replace_file(page, report.page())
    return page
