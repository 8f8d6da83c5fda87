"""Score tables: means over seeds, verdicts, and the text and Markdown that show them."""

from collections.abc import Callable
from typing import Any

import pytest

from gm_train.evaluation import score_table
from gm_train.evaluation.figures import RANKS, figure
from gm_train.evaluation.integration.integration_task import PARTS, IntegrationTask
from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from gm_train.evaluation.missing.missing_task import MissingGenesTask
from gm_train.evaluation.pairs.pairs_task import PairsTask
from gm_train.evaluation.pairs.regulation_task import RegulationTask
from gm_train.evaluation.probes.probe_task import ProbeTask
from gm_train.evaluation.reconstruction.paper_reconstruction_task import PaperReconstructionTask
from gm_train.evaluation.reconstruction.reconstruction_task import ReconstructionTask
from gm_train.evaluation.robustness.robustness_task import RobustnessTask
from gm_train.evaluation.tasks import TASKS


def make_results() -> dict[str, Any]:
    """Results in which the order control wins on plain ranks and PCA wins the probes."""
    names = ("model", "order control", "frequency by rank", "frequency", "random weights")
    entropy = {"plain": (3.5, 2.9, 5.2, 5.8, 6.8), "dithered": (5.5, 5.81, 5.8, 5.82, 6.8)}
    accuracy = {"model": 62.0, "theirs": 75.0, "PCA": 82.0, "variable genes": 70.0, "random weights": 50.0}
    probe_columns = (*(key for key, *_ in ProbeTask.columns), "linear_recall_10", "knn_recall_10", "rare_auroc")
    return {
        "tasks": {key: [task.key for task in TASKS] for key in ("asked", "scored")},
        "model": {"trained_on": "plain"},
        "cells": {"train": 558, "held_out": 142, "genes": 765},
        "label": {
            "key": "cell_type",
            "held_out": 140,
            "types": {"rare": {"train": 12, "held_out": 3}, "never held out": {"train": 500, "held_out": 0}},
            "rare": ["rare"],
        },
        "mask_seeds": 2,
        "probe_seeds": 3,
        "missing_cells": {ranks: [140] for ranks in RANKS},
        "integration_of": {
            "label": "cell_type",
            "batch": "donor",
            "cells": 140,
            "only_held_out": True,
            "without": 2,
            "types": 7,
            "batches": 3,
            "types_of_scgraph": 5,
            "seeds": 3,
        },
        "integration": [
            {
                "ranks": ranks,
                "scored": name,
                **{key: figure([value, value + 0.01]) for key, *_ in (*IntegrationTask.columns, *PARTS)},
            }
            for ranks in RANKS
            for name, value in zip(("model", *IntegrationTask.controls), (0.6, 0.7, 0.65, 0.2, 0.4), strict=True)
        ],
        "masked": [
            {
                "ranks": ranks,
                "scored": name,
                "cross_entropy": figure([value, value + 0.02]),
                "top1": figure([60 / value]),
                "top10": figure([200 / value, 201 / value]),
            }
            for ranks, values in entropy.items()
            for name, value in zip(names, values, strict=True)
        ],
        "missing": [
            {"ranks": ranks, "scored": name, "cross_entropy": figure([value]), "found": figure([10 * value, 9 * value])}
            for ranks in RANKS
            for name, value in zip(("model", *MissingGenesTask.controls), (5.0, 6.0, 4.0, 7.0, 8.0), strict=True)
        ],
        "probes": [
            {
                "ranks": ranks,
                "scored": name,
                **{key: figure([value - 1, value, value + 1]) for key in probe_columns},
            }
            for ranks in RANKS
            for name, value in accuracy.items()
        ],
        **{
            task.key: [
                {"ranks": ranks, "scored": name, **{key: figure([0.5, 0.6]) for key, *_ in task.columns}}
                for ranks in RANKS
                for name in ("model", *task.controls)
            ]
            for task in (ReconstructionTask, PaperReconstructionTask)
        },
        "pairs_facts": {"seeds": 3},
        "pairs": [
            {"ranks": ranks, "scored": name, **{key: figure([value, value + 1]) for key, *_ in PairsTask.columns}}
            for ranks in RANKS
            for name, value in zip(("model", *PairsTask.controls), (60.0, 70.0, 52.0, 50.0), strict=True)
        ],
        "regulation_facts": {
            "seeds": 3,
            "pairs": 80,
            "regulators": 12,
            "intervals": {ranks: {"model": {"direction": [40.0, 60.0], "detection": [45.0, 65.0]}} for ranks in RANKS},
        },
        "regulation": [
            {"ranks": ranks, "scored": name, **{key: figure([value, value + 1]) for key, *_ in RegulationTask.columns}}
            for ranks in RANKS
            for name, value in zip(
                ("model", *RegulationTask.controls), (60.0, 50.0, 50.0, 50.0, 80.0, 52.0, 50.0), strict=True
            )
        ],
        "robustness_facts": {"seeds": 3, "cells": 142},
        "robustness": [
            {"ranks": ranks, "scored": name, **{key: figure([value, value + 1]) for key, *_ in RobustnessTask.columns}}
            for ranks in RANKS
            for name, value in zip(("model", *RobustnessTask.controls), (80.0, 90.0, 70.0), strict=True)
        ],
        "notes": ["A note."],
        "checks": [{"check": "a check", "outcome": "warning", "text": "Something is wrong."}],
    }


def test_a_figure_is_mean_and_sample_deviation() -> None:
    assert figure([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0}
    assert figure([4.0]) == {"mean": 4.0, "sd": None}


def test_verdicts_name_the_controls_that_win() -> None:
    results = make_results()
    plain, dithered, missing, *_ = score_table.verdicts(results)
    probes, integration = (task.verdicts(results) for task in (ProbeTask, IntegrationTask))
    assert "beats frequency by rank (5.21), frequency (5.81), random weights (6.81); loses to order control" in plain
    assert "neighbouring genes alone could explain its score" in plain
    assert "beats order control" in dithered
    assert "Neighbouring genes reveal almost nothing here" in dithered
    assert "trained on plain ranks" in dithered
    assert "beats PCA (6.00), frequency (7.00), random weights (8.00); loses to nearest neighbours (4.00)" in missing
    assert "(0.605) beats random by batch (0.205), random weights (0.405); loses to PCA (0.705)" in integration[0]
    assert "beats random weights (0.405); loses to PCA (0.705), random by type (0.655)" in integration[2]
    assert [sentence.split(" on ")[0] for sentence in probes[::2]] == [
        "Accuracy of a linear probe (%)",
        "Accuracy of nearest neighbours (%)",
        "AUROC of types with fewer than 30 training cells",
    ]
    # Vectors that were made elsewhere are named, too.
    ends = "beats random weights (50.0{}); loses to theirs (75.0{}), PCA (82.0{}), variable genes (70.0{})."
    assert all(sentence.endswith(ends.replace("{}", "")) for sentence in probes[:4])
    assert all(sentence.endswith(ends.replace("{}", "00")) for sentence in probes[4:])


def test_differences_within_the_noise_count_as_level() -> None:
    results = make_results()
    for row in results["probes"]:
        if row["scored"] == "PCA":
            row["linear_accuracy"] = figure([61.0, 63.5])
    assert "is level with PCA" in score_table.verdicts(results)[4]


def test_a_model_that_beats_the_order_control_is_credited() -> None:
    results = make_results()
    for row in results["masked"]:
        if row["scored"] == "model":
            row["cross_entropy"] = figure([2.0, 2.01])
    assert "knows more about cells than neighbouring genes reveal" in score_table.verdicts(results)[0]


def test_text_and_markdown_show_every_row_note_and_verdict() -> None:
    results = make_results()
    for render in (score_table.render_text, score_table.render_markdown):
        text = render(results)
        tasks = (MaskedGenesTask, MissingGenesTask, ProbeTask, IntegrationTask)
        for name in ("model", *(name for task in tasks for name in task.controls)):
            assert text.count(f"{name} ") >= 2
        assert "2.91 ± 0.01*" in text  # the best of the column
        assert "A note." in text
        assert "warning: a check. Something is wrong." in text
        assert all(verdict in text for verdict in score_table.verdicts(results))
        n_tables = sum(len(task.tables(results, "plain")) for task in TASKS)
        assert text.count("ranks as in its training") == n_tables > len(TASKS)


def test_recall_has_a_table_by_the_number_of_training_cells_of_held_out_types() -> None:
    results = make_results()
    (linear, headings, lines), (neighbours, their_headings, _) = score_table.blocks(results)[5:7]
    assert linear.startswith("Recall % by a linear probe for 'cell_type' with so many training cells (types), plain")
    assert neighbours.startswith("Recall % by nearest neighbours for 'cell_type' with so many training cells (types), ")
    assert headings == ["", "10-29 (1)", "AUROC"]
    assert their_headings == headings[:-1]
    assert [line[0] for line in lines] == ["model", "theirs", "PCA", "variable genes", "random weights"]
    results["label"]["rare"] = []
    assert score_table.blocks(results)[5][1] == headings[:-1]
    assert len(score_table.verdicts(results)) == len(score_table.verdicts(make_results())) - 2


def test_only_tasks_that_were_scored_must_be_there() -> None:
    results = make_results() | {"probes": [], "label": None}
    with pytest.raises(
        ValueError, match="probes scores on plain ranks lack: PCA, model, random weights, variable genes"
    ):
        score_table.check_controls(results)
    results["tasks"]["scored"].remove("probes")
    of_probes = sum(len(ProbeTask.tables(make_results(), ranks)) for ranks in RANKS)
    n_tables = len(score_table.blocks(make_results())) - of_probes
    assert len(score_table.blocks(results)) == n_tables
    with pytest.raises(ValueError, match="masked scores on plain ranks lack: "):
        score_table.check_controls(results | {"masked": []})
    # Earlier versions named no tasks.
    del results["tasks"]
    assert len(score_table.blocks(results)) == n_tables


def test_columns_that_no_row_has_are_in_no_table() -> None:
    """Accuracies of disturbed cells need labels; pairs held out of the training need sets that it did not have."""
    results = make_results()
    for row in [*results["robustness"], *results["pairs"]]:
        for key in [key for key in row if key.startswith(("knn", "linear")) or key.endswith("held_out")]:
            del row[key]
    titles = [title for title, *_ in score_table.blocks(results)]
    assert sum("Robustness" in title for title in titles) == 2
    assert ["sets of the training" in title for title in titles if "Pairs of genes" in title] == [True, True]
    assert not any("nearest neighbours that disturbed" in sentence for sentence in score_table.verdicts(results))


@pytest.mark.parametrize("render", [score_table.render_text, score_table.render_markdown])
def test_tables_say_what_level_means(render: Callable[[dict[str, Any]], str]) -> None:
    assert '"level with" a control if their means differ by no more than two standard deviations' in render(
        make_results()
    )
