"""The mapping between genes and tokens."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_shards.errors import DataError
from data_shards.files.location import Location

PAD = 0
MASK = 1
FIRST_GENE = 2
#: Tokens are uint16; two of the 65,536 values are the special tokens `PAD` and `MASK`.
MAX_GENES = 65_534


@dataclass(frozen=True)
class Vocabulary:
    """The genes that have tokens: gene number i is token i + 2.

    Attributes:
        kind: "ensembl" (ids without version) or "as-is" (the ids of the data as they are).
        genes: gene ids, sorted, each once.
    """

    kind: str
    genes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in ("ensembl", "as-is"):
            raise DataError(f"vocabulary kind is {self.kind!r}: expected 'ensembl' or 'as-is'")
        if not self.genes:
            raise DataError("a vocabulary must have at least one gene")
        if list(self.genes) != sorted(set(self.genes)):
            raise DataError("the genes of a vocabulary must be sorted, without duplicates")
        if len(self.genes) > MAX_GENES:
            raise DataError(
                f"{len(self.genes):,} genes do not fit uint16 tokens (at most {MAX_GENES:,}): choose genes with --genes"
            )

    @property
    def size(self) -> int:
        """Number of tokens, including the two special ones."""
        return len(self.genes) + FIRST_GENE

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of kind and genes."""
        return hashlib.sha256("\n".join([self.kind, *self.genes]).encode()).hexdigest()

    @cached_property
    def token_of(self) -> dict[str, int]:
        """Token of each gene id."""
        return {gene: i + FIRST_GENE for i, gene in enumerate(self.genes)}

    def save(self, path: Path) -> None:
        """Write `vocabulary.json`."""
        path.write_text(json.dumps({"kind": self.kind, "genes": list(self.genes)}, indent=0) + "\n")

    @classmethod
    def load(cls, path: Location) -> "Vocabulary":
        """Read `vocabulary.json`.

        Raises:
            DataError: the file is missing or is not a vocabulary.
        """
        try:
            content = json.loads(path.read_text())
            return cls(content["kind"], tuple(content["genes"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a vocabulary ({error}): build the store again with `gm-train data shards`"
            ) from error
