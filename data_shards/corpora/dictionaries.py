"""Read the dictionaries of ranked corpora from elsewhere: gene -> token and gene -> median, as JSON or pickle.

Geneformer's dictionaries are pickles, and a pickle can call any function by name. Here it cannot. Containers,
strings and numbers need no function. The few names that numpy's numbers and old pickles need map to code of this file.
"""

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.files.kinds import kind_of

_PICKLES = (".pkl", ".pickle")
#: Names such as <pad>, <mask>, <cls> and <eos> are not genes.
_SPECIAL = re.compile(r"<[^<>]*>")
#: Limit of a token, since the table from tokens to genes is held in memory.
_MAX_TOKEN = 1 << 24


def read_token_dictionary(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Read a token dictionary.

    Returns:
        Tokens of genes, and tokens of specials such as `<pad>`.

    Raises:
        DataError: it cannot be read, a token is not a whole number in range, or two names share a token.
    """
    tokens = _read(path, "gene id -> token")
    owner: dict[int, str] = {}
    for name, token in tokens.items():
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < _MAX_TOKEN:
            raise DataError(
                f"{path}: {name} has the token {token!r}: expected whole numbers from 0 and below {_MAX_TOKEN:,}; "
                "is it a dictionary of gene id -> token?"
            )
        if token in owner:
            raise DataError(
                f"{path}: {owner[token]} and {name} have the same token, {token}: the dictionary is damaged"
            )
        owner[token] = name
    specials = {name: token for name, token in tokens.items() if _SPECIAL.fullmatch(name)}
    return {name: token for name, token in tokens.items() if name not in specials}, specials


def read_median_dictionary(path: Path) -> dict[str, float]:
    """Read a dictionary of medians; NaN stands for a gene without one.

    Raises:
        DataError: it cannot be read, or a value is not a median.
    """
    medians = {}
    for name, median in _read(path, "gene id -> non-zero median").items():
        if median is None:
            median = math.nan
        if not isinstance(median, int | float) or isinstance(median, bool) or math.isinf(median) or median < 0:
            raise DataError(
                f"{path}: the median of {name} is {median!r}: expected a number above zero, or null (None), for each "
                "gene id"
            )
        medians[name] = float(median) or math.nan
    return medians


def _read(path: Path, what: str) -> dict[str, Any]:
    if path.is_dir():
        raise DataError(
            f"{path}: is {kind_of(path) or 'a folder'}, not a dictionary of {what}: give a JSON or pickle file"
        )
    try:
        if path.suffix in _PICKLES:
            with path.open("rb") as file:
                content = _PlainUnpickler(file).load()
        else:
            content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _Refused as error:
        raise DataError(
            f"{path}: {error}, which a dictionary of {what} does not need and which could run any code, so it was "
            "not read; if you trust the file, load it yourself and save it as JSON"
        ) from error
    # A damaged pickle can raise almost any exception.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}): expected JSON, or a pickle named .pkl or "
            f".pickle, of {what}"
        ) from error
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        example = repr(next(iter(content.items()), None)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected a dictionary of {what}, found {example}")
    return content


class _Refused(Exception):
    """A pickle calls a function, or holds a numpy object, that is not allowed."""


class _NumberType:
    """The type of a numpy scalar. Stands in for `numpy.dtype` in a pickle, so that no code of numpy runs."""

    def __init__(self, code: str, *flags: object) -> None:
        if not re.fullmatch(r"[iuf][1248]", code):
            raise _Refused(f"holds a numpy object of type {code!r}")
        self._code = code
        self._order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = {"<": "<", ">": ">"}.get(state[1], "|")

    def number(self, content: bytes) -> int | float:
        """The number that these bytes hold."""
        value: int | float = np.frombuffer(content, np.dtype(self._order + self._code))[0].item()
        return value


def _scalar(kind: _NumberType, content: bytes) -> int | float:
    return kind.number(content)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, with which old pickles store bytes."""
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Refused(f"calls {module}.{name}")
        return _STAND_INS[module, name]
