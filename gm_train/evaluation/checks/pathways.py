"""Check whether the gene sets of a run cover the genes of its vocabulary and of the evaluated cells."""

from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from gm_train.evaluation.checks.finding import GOOD, NOT_DONE, WARNING, finding
from gm_train.evaluation.figures import Row
from gm_train.evaluation.task import Subject
from gm_train.objective.pathway import fitting_sets, read_gmt, tokens_of_names

_NAME = "pathway coverage"
#: Share of the gene sets' genes that should be there. A set that keeps half of its genes keeps a quarter of its pairs.
LEAST = 0.5
#: A gene counts as there if at least this share of the cells shows it.
SEEN = 0.01


def check_pathways(subject: Subject, results: Row) -> Row:
    """Count the genes of the run's gene sets that have a token, and those that the evaluated cells show.

    Args:
        subject: the model, the configuration of its run, and its cells.
        results: of its tasks; not used.
    """
    objective, cells = subject.config.objective, subject.cells
    if not objective.pathways or objective.gamma == 0:
        return finding(_NAME, NOT_DONE, "No gene sets of the training are known.")
    path = Path(objective.pathways)
    try:
        sets = read_gmt(path)
    except DataError:
        # Model cards show this text, and paths of this machine do not belong there.
        text = f"The run's gene sets, {path.name}, cannot be read: it is not where it was in training, or damaged."
        return finding(_NAME, NOT_DONE, text)
    if hash_path(path) != subject.pathways_hash:
        text = (
            f"{path.name} is not the file of gene sets that the model was trained with (the hash differs): put that "
            "file back."
        )
        return finding(_NAME, NOT_DONE, text)
    low, high = objective.pathway_size
    names = sorted({gene for genes in fitting_sets(sets, (low, high)) for gene in genes})
    token_of = tokens_of_names(cells.tokenizer)
    known_names = [name for name in names if name in token_of]
    tokens = np.array(sorted({token_of[name] for name in known_names}), np.int64)
    ranked = cells.ranked(subject.trained_on)
    n_cells = np.bincount(ranked.tokens, minlength=subject.vocabulary_size)
    n_seen = int((n_cells[tokens] >= max(1.0, SEEN * ranked.n_cells)).sum())
    known, seen = len(known_names) / max(1, len(names)), n_seen / max(1, len(names))
    of_cells = float(np.isin(ranked.tokens, tokens).mean())
    text = (
        f"Of the {len(names):,} genes of the run's gene sets ({low} to {high} genes each), {known:.0%} are in the "
        f"vocabulary, and {seen:.0%} are shown by at least {SEEN:.0%} of the evaluated cells. Of the genes that the "
        f"cells show, {of_cells:.0%} are in a set."
    )
    numbers = {"genes": len(names), "in_vocabulary": known, "in_cells": seen, "of_cells": of_cells}
    if min(known, seen) >= LEAST:
        return finding(_NAME, GOOD, text, **numbers)
    if known < LEAST:
        text += (
            f" Less than {LEAST:.0%} are in the vocabulary: most pairs of a set are never trained on, so pathways may "
            "not be told apart. Use gene sets of this species, under the names of the vocabulary."
        )
    else:
        text += (
            f" The cells show less than {LEAST:.0%}: they cannot tell most pathways apart, whatever the model has "
            "learned. Evaluate cells with more genes."
        )
    return finding(_NAME, WARNING, text, **numbers)
