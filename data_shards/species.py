"""Which species genes are of, by the prefix of their Ensembl ids."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_shards.errors import DataError

_PREFIX = re.compile(r"(ENS[A-Z]*G)\d{11}")
_NAMES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "rhesus macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSPTRG": "chimpanzee",
    "ENSCJAG": "marmoset",
    "ENSSSCG": "pig",
    "ENSGALG": "chicken",
}


def find_species(genes: Iterable[str]) -> str | None:
    """The prefix of most of the Ensembl ids, such as ENSMUSG; None where there are no Ensembl ids.

    A few ids of others are usual: viruses, spike-ins.
    """
    prefixes = Counter(match[1] for gene in genes if (match := _PREFIX.fullmatch(gene)))
    return min(prefixes, key=lambda prefix: (-prefixes[prefix], prefix)) if prefixes else None


def refuse_species_mixed(species: Mapping[str, str | None]) -> None:
    """Raise DataError if data sets are of different species, where it is known.

    Args:
        species: of each data set, by name, what `find_species` says.
    """
    examples: dict[str, str] = {}
    for name, prefix in species.items():
        if prefix is not None:
            examples.setdefault(prefix, name)
    if len(examples) > 1:
        found = ", ".join(f"{name}: {_name(prefix)}" for prefix, name in examples.items())
        raise DataError(
            f"data sets of different species cannot be put together ({found}): make medians and stores of each species "
            "of its own"
        )


def refuse_other_species(path: Path, ids: Iterable[str | None], vocabulary: Iterable[str]) -> None:
    """Raise DataError if most Ensembl ids of a file have another prefix than most of the vocabulary."""
    found, wanted = find_species(gene for gene in ids if gene is not None), find_species(vocabulary)
    if found is not None and wanted is not None and found != wanted:
        raise DataError(
            f"{path}: its genes are of another species: {_name(found)}, where the vocabulary is {_name(wanted)}: "
            "leave the file out, or make medians and a store of its own for this species"
        )


def _name(prefix: str) -> str:
    return f"{_NAMES.get(prefix, 'another species')} ({prefix}…)"
