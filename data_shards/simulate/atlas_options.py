"""Options of the simulator, in a module of their own that the command line can import at once."""

from dataclasses import dataclass

from data_shards.errors import OptionError


@dataclass(frozen=True)
class AtlasOptions:
    """What to simulate.

    Attributes:
        cells, genes, cell_types, programmes, donors, batches: how many of each.
        genes_per_programme: size of each gene set.
        programmes_per_type: programmes that a type uses.
        counts_per_cell: median number of molecules of a cell before capture and dropout.
        dropout: probability that a gene with one molecule is lost; it falls off exponentially with the count.
        seed: seed of all random draws.
        sorted: sort cells by type, as many files do: the worst case for mixing.
    """

    cells: int = 2000
    genes: int = 2000
    cell_types: int = 8
    programmes: int = 24
    donors: int = 8
    batches: int = 4
    genes_per_programme: int = 30
    programmes_per_type: int = 4
    counts_per_cell: float = 2000.0
    dropout: float = 0.1
    seed: int = 0
    sorted: bool = False

    def __post_init__(self) -> None:
        for name in ("cells", "genes", "cell_types", "programmes", "donors", "batches", "genes_per_programme"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.genes_per_programme > self.genes:
            raise OptionError(f"--genes-per-programme {self.genes_per_programme} exceeds --genes {self.genes}")
        if not 1 <= self.programmes_per_type <= self.programmes:
            raise OptionError(
                f"--programmes-per-type {self.programmes_per_type}: must be 1 to --programmes {self.programmes}"
            )
        if not 0 <= self.dropout < 1:
            raise OptionError(f"--dropout {self.dropout:g}: must be at least 0 and below 1")
        if self.counts_per_cell < 1:
            raise OptionError(f"--counts-per-cell {self.counts_per_cell:g}: must be at least 1")
