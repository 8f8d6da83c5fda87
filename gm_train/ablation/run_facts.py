"""What the runs of an ablation have cost."""

from gm_train.ablation.run_ablation import AblationRun
from gm_train.comparison.compared_run import read_run
from gm_train.evaluation.figures import Row


def run_facts(run: AblationRun, results: Row) -> Row:
    """Read what a finished run has cost.

    Args:
        run: trained and scored.
        results: of its evaluation.

    Returns:
        `variant`, `seed`, `steps`, `tokens`, `cells` (trained on, a cell as often as it came), `parameters`, `seconds`
        (of the steps, without validations and checkpoints), `flops` (of the whole training, as its
        steps have recorded them; None if they have not),
        `loss` (the mean of the last tenth of the steps), `train` and `test` (cells of the evaluation), their `hash`,
        `held_out_ratio` (of the store),
        `unscored` (tasks that could not be scored), `language` (the objective), `revision` (of git),
        `processor`, `threads`.

    Raises:
        DataError: a record of the run is damaged.
    """
    read = read_run(run.record.directory)
    compute = read.compute()
    losses = [row["loss"] for row in read.rows if row.get("loss") is not None]
    last = losses[-max(1, len(losses) // 10) :]
    # Of a step that was made again after a start, the last row counts.
    flops = list({row["step"]: row.get("flops") for row in read.rows if "loss" in row}.values())
    start = read.starts[-1] if read.starts else {}
    return {
        "variant": run.planned.variant,
        "seed": run.planned.seed,
        **{key: compute[key] for key in ("steps", "tokens", "cells", "parameters", "revision", "processor")},
        "seconds": compute["hours"] * 3600,
        "flops": None if None in flops else sum(flops),
        "loss": sum(last) / len(last),
        "train": results["cells"]["train"],
        "test": results["cells"]["held_out"],
        "held_out_ratio": run.held_out_ratio(),
        "hash": results["cells"]["hash"],
        "unscored": [task for task in results["tasks"]["asked"] if task not in results["tasks"]["scored"]],
        "language": results["model"]["language"],
        "threads": start.get("threads"),
    }
