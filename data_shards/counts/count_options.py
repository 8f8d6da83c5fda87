"""Options that say which matrix of a file holds its counts, and how they were transformed."""

from dataclasses import dataclass

from data_shards.errors import OptionError


@dataclass(frozen=True)
class CountOptions:
    """Which matrix of a file holds its counts, and how they were transformed.

    Attributes:
        layer: read this layer of `layers` instead of `X`.
        raw: read `raw/X` and its genes instead of `X`.
        counts_from: "log1p" recovers counts from log1p of counts that were scaled per cell.
        gene_column: column of `var` with gene ids or symbols, used instead of its index.
        allow_non_integer: accept counts that are not integers, such as those after ambient RNA removal.
    """

    layer: str | None = None
    raw: bool = False
    counts_from: str | None = None
    gene_column: str | None = None
    allow_non_integer: bool = False

    def __post_init__(self) -> None:
        if self.layer is not None and self.raw:
            raise OptionError("--layer and --raw name two different matrices: give one of them")
        if self.counts_from not in (None, "log1p"):
            raise OptionError(f"--counts-from {self.counts_from!r} is unknown: the only choice is 'log1p'")
        if self.counts_from is not None and self.allow_non_integer:
            raise OptionError("--counts-from log1p gives whole counts: leave out --allow-non-integer")
