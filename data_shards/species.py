"""Which species an Ensembl id is of, so that mouse counts are not ranked with human medians."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_shards.errors import DataError

_PREFIX = re.compile(r"(ENS[A-Z]*G)\d")
#: Prefixes of the species that single-cell atlases are made of.
_NAMES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSPTRG": "chimpanzee",
    "ENSCJAG": "marmoset",
    "ENSSSCG": "pig",
    "ENSGALG": "chicken",
}


def refuse_other_species(path: Path, ids: Iterable[str | None], vocabulary: Iterable[str]) -> None:
    """Raise DataError if most Ensembl ids of a file have another prefix than most of the vocabulary."""
    found, wanted = _prefix(ids), _prefix(vocabulary)
    if found is not None and wanted is not None and found != wanted:
        raise DataError(
            f"{path}: its genes are of another species: {_name(found)}, where the vocabulary is {_name(wanted)}: "
            "leave the file out, or make medians and a store of its own for this species"
        )


def _prefix(ids: Iterable[str | None]) -> str | None:
    counter = Counter(match[1] for gene in ids if gene is not None and (match := _PREFIX.match(gene)))
    return counter.most_common(1)[0][0] if counter else None


def _name(prefix: str) -> str:
    return f"{_NAMES[prefix]} ({prefix}…)" if prefix in _NAMES else f"{prefix}…"
