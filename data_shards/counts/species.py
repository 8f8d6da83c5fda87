"""Find the species of genes from the prefix of their Ensembl ids."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

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
    "ENSSSCG": "pig",
    "ENSGALG": "chicken",
}


def find_species(genes: Iterable[str]) -> str | None:
    """The prefix of most of the Ensembl ids, such as ENSMUSG; None if there are no Ensembl ids.

    A few ids of other origin are normal: viruses, spike-ins.
    """
    prefixes = Counter(match[1] for gene in genes if (match := _PREFIX.fullmatch(gene)))
    return min(prefixes, key=lambda prefix: (-prefixes[prefix], prefix)) if prefixes else None


def species_name(prefix: str) -> str:
    """The name of the species of a prefix, with the prefix, such as "mouse (ENSMUSG…)"."""
    return f"{_NAMES.get(prefix, 'another species')} ({prefix}…)"


def refuse_species_mixed(
    species: Mapping[str, str | None], remedy: str = "make separate medians and stores for each species"
) -> None:
    """Raise DataError if data sets are of different known species.

    Args:
        species: for each data set, by name, the result of `find_species`.
        remedy: what the message advises.
    """
    examples: dict[str, str] = {}
    for name, prefix in species.items():
        if prefix is not None:
            examples.setdefault(prefix, name)
    if len(examples) > 1:
        found = ", ".join(f"{name}: {species_name(prefix)}" for prefix, name in examples.items())
        raise DataError(f"data sets of different species cannot be combined ({found}): {remedy}")
