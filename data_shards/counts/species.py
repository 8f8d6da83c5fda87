"""Which species genes are of, by the prefix of their Ensembl ids."""

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
        found = ", ".join(
            f"{name}: {_NAMES.get(prefix, 'another species')} ({prefix}…)" for prefix, name in examples.items()
        )
        raise DataError(
            f"data sets of different species cannot be put together ({found}): make medians and stores of each species "
            "of its own"
        )
