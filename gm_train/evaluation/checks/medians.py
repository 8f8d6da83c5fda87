"""Check whether the medians of genes that the model was trained with fit the evaluated cells."""

import numpy as np

from data_shards.tokens.drift import DRIFT_FACTOR, DRIFT_SHARE, DRIFT_VALUES, Drift, compare_medians
from gm_train.evaluation.checks.finding import GOOD, NOT_DONE, WARNING, finding
from gm_train.evaluation.figures import Row
from gm_train.evaluation.task import Subject

_NAME = "medians drift"
#: A data set counts if it has at least so many genes to compare: a share of few genes says nothing.
LEAST_GENES = 50


def check_medians(subject: Subject, results: Row) -> Row:
    """Compare the medians of each data set's evaluated cells with those that rank them.

    Ranks are counts divided by medians. If the medians do not fit, a cell's order differs from that in training, and
    integration of batches suffers (arXiv 2504.16956 computes the medians on the pretraining cells).

    Args:
        subject: the model and its cells.
        results: of its tasks; not used.
    """
    cells = subject.cells
    drifts: dict[str, Drift] = {}
    for which, path in cells.files.items():
        expression = cells.expression[cells.data_set == which]
        genes, values = expression.indices.astype(np.int32), np.expm1(expression.data.astype(np.float64))
        drifts[path.stem] = compare_medians(cells.tokenizer, genes, values)
    numbers = {
        name: {
            "genes_compared": drift.n_genes,
            "share_of_genes": drift.share,
            "common_factor": drift.common_factor,
            "share_beyond_common_factor": drift.share_beyond,
            "farthest_genes": dict(drift.farthest),
        }
        for name, drift in drifts.items()
    }
    compared = {name: drift for name, drift in drifts.items() if drift.n_genes >= LEAST_GENES}
    if not compared:
        text = (
            f"No data set has {LEAST_GENES} genes with {DRIFT_VALUES} or more non-zero counts in the evaluated cells: "
            "read more (--max-cells)."
        )
        return finding(_NAME, NOT_DONE, text, data_sets=numbers)
    worst = max(compared, key=lambda name: compared[name].share_beyond)
    text = _sentence(worst, compared[worst])
    if len(compared) > 1:
        text = f"Of {len(compared):,} data sets the farthest is {text}"
    if not (warned := [name for name, drift in compared.items() if drift.is_large]):
        return finding(_NAME, GOOD, f"{text} Up to {DRIFT_SHARE:.0%} is no cause for concern.", data_sets=numbers)
    text += (
        f" More than {DRIFT_SHARE:.0%} ({', '.join(warned)}): the order of genes means something else than in training."
        " Were both counted and normalised in the same way, from raw counts of the same genes?"
    )
    return finding(_NAME, WARNING, text, data_sets=numbers)


def _sentence(name: str, drift: Drift) -> str:
    genes = ", ".join(f"{gene} ({factor:.2g} times)" for gene, factor in drift.farthest)
    farthest = f" Farthest: {genes}." if genes else ""
    return (
        f"{name}: of {drift.n_genes:,} genes with {DRIFT_VALUES} or more non-zero counts, {drift.share_beyond:.1%} "
        f"have a median that differs from the model's by more than a factor of {DRIFT_FACTOR:g}, once the factor that "
        f"most genes share ({drift.common_factor:.2g}, which changes no order) is divided out.{farthest}"
    )
