"""Decide which evaluations can be compared: those of the same cells, label and seeds. Every other one is named."""

from collections.abc import Sequence

from gm_train.comparison.compared_run import ComparedRun
from gm_train.evaluation.figures import Row, split_of
from gm_train.evaluation.task import EvaluationTask


def comparable(runs: Sequence[ComparedRun]) -> tuple[dict[str, Row], list[str]]:
    """Find the evaluations that can be compared with that of the first evaluated run.

    Args:
        runs: in the order in which they were given.

    Returns:
        Name of a run to its `eval.json`; and a sentence for each run that is left out, or whose scores need a warning.
    """
    kept: dict[str, Row] = {}
    warnings = []
    for run in runs:
        results = run.results
        if results is None:
            warnings.append(
                f"{run.name}: NOT EVALUATED, so none of its scores are shown: run `gm-train eval {run.name} FILE...`."
            )
            continue
        if results["cells"].get("hash") is None:
            warnings.append(
                f"{run.name}: NOT COMPARED: its evaluation, of an earlier version of gm-train, does not say which "
                f"cells it scored: run `gm-train eval {run.name} FILE...` again."
            )
            continue
        if kept:
            reference = next(iter(kept))
            if why := _differences(results, kept[reference]):
                warnings.append(
                    f"{run.name}: NOT COMPARED with {reference}: it was scored on {' and '.join(why)}. Run "
                    "`gm-train eval` on both with the same files, --store, --split, --max-cells, --mask-seeds and "
                    "--label."
                )
                continue
        kept[run.name] = results
        if (step := results["checkpoint"]["step"]) != (last := run.compute()["steps"]):
            warnings.append(f"{run.name}: its scores are of step {step:,}; it stands at step {last:,}.")
        if results["cells"]["other_store"]:
            warnings.append(
                f"{run.name}: it was scored on a store that it was not trained on, and may have been trained on cells "
                "that are held out there."
            )
    return kept, warnings


def of_same_question(task: type[EvaluationTask], kept: dict[str, Row]) -> tuple[dict[str, Row], list[str]]:
    """Find the evaluations whose scores of a task can be compared with those of the first one that has some.

    Args:
        task: the task.
        kept: name of a run to its `eval.json`, from `comparable`.

    Returns:
        Those of `kept` that have scores of the task and asked the same question; and, if there are some, a sentence
        for each other one.
    """
    scored = {name: results for name, results in kept.items() if results.get(task.key)}
    if not scored:
        return {}, []
    reference = next(iter(scored))
    question = task.question(scored[reference])
    others = [name for name, results in scored.items() if task.question(results) != question]
    sentences = [
        f"{name}: its scores of the task {task.key} are NOT COMPARED with {reference}: they are of other gene sets, "
        "pairs or batches, which the `eval.json` of both names."
        for name in others
    ]
    sentences += [
        f"{name}: it has no scores of the task {task.key}, which {reference} has: the notes in its `eval.md` say why."
        for name in kept
        if name not in scored
    ]
    return {name: results for name, results in scored.items() if name not in others}, sentences


def _differences(results: Row, reference: Row) -> list[str]:
    """What two evaluations were scored on that differs, in words."""
    differences = []
    here, there = results["cells"], reference["cells"]
    if split_of(results) != split_of(reference):
        differences.append(f"{split_of(results)} cells (there {split_of(reference)} cells)")
    elif here["hash"] != there["hash"]:
        counts = [f"{cells['train']:,} training and {cells['held_out']:,} held-out" for cells in (here, there)]
        differences.append(
            f"other cells, genes or splits ({counts[0]}, hash {here['hash'][:8]}; there {counts[1]}, "
            f"hash {there['hash'][:8]})"
        )
    if results["mask_seeds"] != reference["mask_seeds"]:
        differences.append(f"{results['mask_seeds']} mask seeds (there {reference['mask_seeds']})")
    if None not in (here["label"], there["label"]) and here["label"] != there["label"]:
        differences.append(f"the label {here['label']!r} (there {there['label']!r})")
    return differences
