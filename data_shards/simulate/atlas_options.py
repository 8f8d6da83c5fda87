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
        type_skew: exponent a of the types' frequencies: type k of K, from 1, has the share k^-a / sum over j of j^-a
            (Zipf), so the commonest is K^a times as frequent as the rarest. 0: all are equally frequent.
        regulators: genes that drive others (`regulation.py`); 0 for none.
        targets_per_regulator: genes that each of them drives, besides other regulators.
        regulation_strength: effect of a regulator's activity on a target, in units of the target's own variation.
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
    type_skew: float = 0.0
    regulators: int = 0
    targets_per_regulator: int = 10
    regulation_strength: float = 1.0

    @property
    def target_pool(self) -> int:
        """Number of genes that targets are drawn from: half as many as pairs, so that targets share regulators."""
        return max(self.targets_per_regulator, self.regulators * self.targets_per_regulator // 2)

    @property
    def candidates(self) -> int:
        """Number of genes that regulators and targets are drawn from, those with the highest base expression."""
        return self.genes // 4

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
        for name in ("type_skew", "regulators", "regulation_strength"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 0")
        if self.targets_per_regulator < 1:
            raise OptionError(f"--targets-per-regulator {self.targets_per_regulator}: must be at least 1")
        needed = self.regulators + self.target_pool
        if self.regulators and needed > self.candidates:
            raise OptionError(
                f"--regulators {self.regulators} with {self.targets_per_regulator} targets each need {needed:,} genes "
                f"of high expression, a quarter of --genes: ask for fewer, or --genes {4 * needed} or more"
            )
