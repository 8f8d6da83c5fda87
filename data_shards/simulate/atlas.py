"""Simulate an atlas whose cell types and gene programmes are known.

A count is a number of molecules. Each molecule comes from the base expression of the cell's type or from one of the
type's programmes, whose activity differs from cell to cell. The number of molecules of a cell is log-normal. Each is
caught with a probability that depends on its gene, the batch and the donor. Genes may regulate others
(`regulation.py`). Dropout then removes genes from a cell, low counts first. The programmes are written as GMT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.draws import catch, count_genes, draw_genes, guide
from data_shards.simulate.regulation import Regulation, draw_regulation, regulate

#: Cells of a chunk; each chunk has a random generator of its own.
CHUNK_CELLS = 4096

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Atlas:
    """The parameters of the simulation that are drawn before any cell.

    Attributes:
        programmes: int64 (programmes, genes_per_programme), gene numbers.
        of_type: int64 (cell_types, programmes_per_type), programmes of each type.
        profiles: float64 (cell_types + programmes, genes), cumulative probabilities of a molecule's gene.
        guides: int32 (cell_types + programmes, n), where the search for a gene begins (`draws.guide`).
        caught: float64 (donors, genes), probability that a molecule is caught.
        batch_of: int64 (donors,), the batch of each donor.
        regulation: which genes regulate which; None if none do.
    """

    programmes: I64
    of_type: I64
    profiles: F64
    guides: npt.NDArray[np.int32]
    caught: F64
    batch_of: I64
    regulation: Regulation | None


@lru_cache(maxsize=1)
def draw_atlas(options: AtlasOptions) -> Atlas:
    """Draw what all cells share; cached, since a worker process draws many chunks of the same atlas."""
    rng = np.random.default_rng([options.seed, 0])
    base = rng.lognormal(0.0, 1.5, options.genes)
    size = options.genes_per_programme
    programmes = np.stack([rng.choice(options.genes, size, replace=False) for _ in range(options.programmes)])
    of_type = np.stack(
        [rng.choice(options.programmes, options.programmes_per_type, replace=False) for _ in range(options.cell_types)]
    )
    profiles = np.zeros((options.cell_types + options.programmes, options.genes))
    for cell_type in range(options.cell_types):
        profiles[cell_type] = base * rng.lognormal(0.0, 0.3, options.genes)
    for number, genes in enumerate(programmes):
        profiles[options.cell_types + number, genes] = rng.lognormal(0.0, 0.5, size)
    cumulative = profiles.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    batch_of = np.arange(options.donors) % options.batches
    batch_effect = rng.uniform(0.6, 1.0, (options.batches, options.genes))
    donor_effect = rng.uniform(0.8, 1.0, (options.donors, options.genes))
    guides = np.stack([guide(profile) for profile in cumulative])
    regulation = draw_regulation(options, base) if options.regulators else None
    return Atlas(programmes, of_type, cumulative, guides, batch_effect[batch_of] * donor_effect, batch_of, regulation)


def type_shares(options: AtlasOptions) -> F64:
    """The share of the cells that each type has, the commonest first: float64 (cell_types,)."""
    weights = np.arange(1, options.cell_types + 1) ** -float(options.type_skew)
    return np.asarray(weights / weights.sum())


def _draw_types(options: AtlasOptions, chunk: int, size: int, rng: np.random.Generator) -> I64:
    """Draw the types of the cells of one chunk: int64 (size,)."""
    if not options.type_skew:
        types = rng.integers(options.cell_types, size=size)
        if options.sorted:
            cells = np.arange(chunk * CHUNK_CELLS, chunk * CHUNK_CELLS + size)
            types = cells * options.cell_types // options.cells
        return types
    where = rng.random(size)
    if options.sorted:
        where = (chunk * CHUNK_CELLS + np.arange(size) + 0.5) / options.cells
    types = np.searchsorted(type_shares(options).cumsum(), where, side="right")
    return np.minimum(types, options.cell_types - 1)


def draw_cells(atlas: Atlas, options: AtlasOptions, chunk: int, size: int) -> tuple[I64, I64, sp.csr_matrix]:
    """Draw types, donors and counts of one chunk of cells, by a random generator of its own.

    Args:
        atlas: what `draw_atlas` returned for `options`.
        options: what to simulate.
        chunk: number of the chunk, from 0.
        size: cells of the chunk.

    Returns:
        Types and donors, int64 (size,), and counts, csr_matrix (size, genes) of float32, a cell's genes ascending.
    """
    rng = np.random.default_rng([options.seed, 1, chunk])
    types = _draw_types(options, chunk, size, rng)
    donors = rng.integers(options.donors, size=size)
    molecules = np.maximum(1, rng.lognormal(np.log(options.counts_per_cell), 0.4, size)).astype(np.int64)
    # Shares of the base profile and of each programme of the type: the activity differs between cells.
    shares = rng.dirichlet([6.0] + [1.0] * options.programmes_per_type, size)
    parts = rng.multinomial(molecules, shares)
    sources = np.column_stack([types, options.cell_types + atlas.of_type[types]])
    # Number of molecules of each cell from each profile. Molecules are drawn profile by profile, and in each by cell.
    drawn = [np.where(sources == profile, parts, 0).sum(axis=1) for profile in range(len(atlas.profiles))]
    genes = [
        draw_genes(rng.random(int(n.sum())), cumulative, guide)
        for n, cumulative, guide in zip(drawn, atlas.profiles, atlas.guides, strict=True)
    ]
    ends = np.cumsum(molecules)
    starts, fill = ends - molecules, ends - molecules
    caught = np.empty(int(ends[-1]), np.int32)
    for n, of_profile in zip(drawn, genes, strict=True):
        catch(of_profile, n, rng.random(len(of_profile)), atlas.caught, donors, caught, fill)
    counts = sp.csr_matrix(count_genes(caught, starts, fill, options.genes), (size, options.genes))
    if atlas.regulation is not None:
        regulate(counts, atlas.regulation, np.random.default_rng([options.seed, 3, chunk]))
    lost = rng.random(counts.nnz) < options.dropout * np.exp(1.0 - counts.data.astype(np.float64))
    counts.data[lost] = 0
    counts.eliminate_zeros()
    return types, donors, counts


def format_gmt(atlas: Atlas, gene_names: Sequence[str]) -> str:
    """Format the programmes as gene sets, a line each: name, cell types that use it, genes, separated by tabs."""
    lines = []
    for number, genes in enumerate(atlas.programmes):
        users = [f"type{i:03d}" for i, used in enumerate(atlas.of_type) if number in used]
        described = "used by " + (", ".join(users) or "no cell type")
        lines.append("\t".join([f"PROGRAMME_{number:03d}", described, *(gene_names[gene] for gene in sorted(genes))]))
    return "\n".join(lines) + "\n"
