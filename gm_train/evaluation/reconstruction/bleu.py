"""BLEU of token sequences: how many short runs of tokens two sequences share."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

#: Longest run of tokens that is counted.
MAX_LENGTH = 4


def _runs(tokens: Sequence[int], length: int) -> Counter[tuple[int, ...]]:
    """Count the runs of `length` tokens."""
    return Counter(tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1))


def bleu(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float:
    """BLEU of a corpus, of Papineni et al. 2002 (ACL, pages 311-318, doi 10.3115/1073083.1073135), without smoothing.

    BLEU = BP * exp(sum over n = 1..4 of log(p_n) / 4). p_n is the share of the guesses' runs of n tokens that are in
    their truth; a run counts at most as often as it stands in the truth. BP = min(1, exp(1 - r / c)), where r and c are
    the numbers of tokens of all truths and all guesses. If no run of some length is right, BLEU is 0.

    Args:
        pairs: truth and guess of each sequence, tokens.

    Returns:
        A number from 0 to 1.
    """
    right, all_runs = [0] * MAX_LENGTH, [0] * MAX_LENGTH
    n_truth = n_guess = 0
    for truth, guess in pairs:
        n_truth += len(truth)
        n_guess += len(guess)
        for n in range(MAX_LENGTH):
            guessed = _runs(guess, n + 1)
            right[n] += (guessed & _runs(truth, n + 1)).total()
            all_runs[n] += guessed.total()
    if not all(right):
        return 0.0
    precision = math.exp(sum(math.log(r / a) for r, a in zip(right, all_runs, strict=True)) / MAX_LENGTH)
    return min(1.0, math.exp(1 - n_truth / n_guess)) * precision
