"""What the main scores of an ablation say, in sentences."""

from gm_train.ablation.score_tables import Scored, main_columns
from gm_train.ablation.seed_statistics import Scores, interval, over_seeds, paired_difference
from gm_train.evaluation.figures import MODEL, PCA, RANKS
from gm_train.evaluation.task import EvaluationTask
from gm_train.evaluation.tasks import TASKS


def verdicts(scored: Scored) -> list[str]:
    """Sentences on the main columns: each variant against its base, the best control and PCA."""
    sentences = []
    for task in TASKS:
        for ranks in RANKS:
            for key, _, what, decimals, more in main_columns(scored, task, ranks):
                parts = _against_base(scored, task, ranks, key, more, decimals)
                parts += _against_control(scored, task, ranks, key, more, decimals)
                if parts:
                    sentences.append(f"{what}, {ranks} ranks: {'; '.join(parts)}.")
    return sentences


def _against_base(
    scored: Scored, task: type[EvaluationTask], ranks: str, key: str, more: bool, decimals: int
) -> list[str]:
    parts = []
    for variant, base in scored.pairs:
        of_variant, of_base = (scored.scores(name, task.key, ranks, MODEL, key) for name in (variant, base))
        if of_variant.keys() & of_base.keys():
            parts.append(_words(f"{variant} - {base}", of_variant, of_base, more, scored.held_out_ratio, decimals))
    return parts


def _against_control(
    scored: Scored, task: type[EvaluationTask], ranks: str, key: str, more: bool, decimals: int
) -> list[str]:
    parts = []
    for variant in scored.of:
        found = {name: scored.scores(variant, task.key, ranks, name, key) for name in task.controls}
        known = {name: scores for name, scores in found.items() if scores}
        model = scored.scores(variant, task.key, ranks, MODEL, key)
        if not known or not model:
            continue
        best = max(known, key=lambda name: over_seeds(known[name])["mean"] * (1 if more else -1))
        for name in dict.fromkeys([best, *({PCA} & known.keys())]):
            if model.keys() & known[name].keys():
                parts.append(_words(f"{variant} - {name}", model, known[name], more, scored.held_out_ratio, decimals))
    return parts


def _words(name: str, scores: Scores, base: Scores, more: bool, ratio: float, decimals: int) -> str:
    found = paired_difference(scores, base, more, ratio)
    return f"{name} {found['mean']:+.{decimals}f}{interval(found, decimals)} {found['outcome']}"
