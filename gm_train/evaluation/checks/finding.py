"""What a check finds: whether a known sign of failure is there, in a sentence and in numbers."""

from gm_train.evaluation.figures import Row

GOOD, WARNING, NOT_DONE = "good", "warning", "not done"


def finding(check: str, outcome: str, text: str, **numbers: object) -> Row:
    """Make an entry of `checks` in `eval.json`.

    Args:
        check: name of the check.
        outcome: GOOD, WARNING, or NOT_DONE if the check does not apply.
        text: a sentence or more for the reader, with the numbers that decide and, for a warning, what to do.
        numbers: what else to keep, ready for JSON.
    """
    return {"check": check, "outcome": outcome, "text": text, **numbers}
