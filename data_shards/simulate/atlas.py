"""A simulated atlas whose cell types and gene programmes are known.

Each count of a cell is one molecule. It comes from the cell type's base expression or, with the cell's own activity,
from one of the programmes of its type; batch and donor catch each gene's molecules with their own probability; library
sizes spread log-normally; dropout then removes genes from a cell, low counts first. The programmes are written as GMT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.draws import catch, count_genes, draw_genes, guide

#: Cells that one random generator draws.
CHUNK_CELLS = 4096

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Atlas:
    """What is fixed before any cell is drawn.

    Attributes:
        programmes: int64 (programmes, genes_per_programme), gene numbers.
        of_type: int64 (cell_types, programmes_per_type), programmes of each type.
        profiles: float64 (cell_types + programmes, genes), cumulative probability of a molecule's gene.
        guides: int32 (cell_types + programmes, n), where the search for a gene begins (`draws.guide`).
        caught: float64 (donors, genes), probability that a molecule is caught.
        batch_of: int64 (donors,).
    """

    programmes: I64
    of_type: I64
    profiles: F64
    guides: npt.NDArray[np.int32]
    caught: F64
    batch_of: I64


@lru_cache(maxsize=1)
def draw_atlas(options: AtlasOptions) -> Atlas:
    """What the cells of these options share; kept, since a worker is asked for one chunk after the other."""
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
    return Atlas(programmes, of_type, cumulative, guides, batch_effect[batch_of] * donor_effect, batch_of)


def draw_cells(atlas: Atlas, options: AtlasOptions, chunk: int, size: int) -> tuple[I64, I64, sp.csr_matrix]:
    """Types, donors and counts of one chunk of cells, from a generator of its own.

    Returns:
        types and donors int64 (size,), counts csr_matrix (size, genes), float32, genes of a cell in order.
    """
    rng = np.random.default_rng([options.seed, 1, chunk])
    types = rng.integers(options.cell_types, size=size)
    if options.sorted:
        cells = np.arange(chunk * CHUNK_CELLS, chunk * CHUNK_CELLS + size)
        types = cells * options.cell_types // options.cells
    donors = rng.integers(options.donors, size=size)
    molecules = np.maximum(1, rng.lognormal(np.log(options.counts_per_cell), 0.4, size)).astype(np.int64)
    # Shares of the base profile and of each programme of the type: the activity differs between cells.
    shares = rng.dirichlet([6.0] + [1.0] * options.programmes_per_type, size)
    parts = rng.multinomial(molecules, shares)
    sources = np.column_stack([types, options.cell_types + atlas.of_type[types]])
    # Molecules of each cell from each profile: molecules stand profile by profile, and cell by cell within one.
    drawn = [np.where(sources == profile, parts, 0).sum(axis=1) for profile in range(len(atlas.profiles))]
    genes = [
        draw_genes(rng.random(int(n.sum())), cumulative, guide)
        for n, cumulative, guide in zip(drawn, atlas.profiles, atlas.guides, strict=True)
    ]
    ends = np.cumsum(molecules)
    starts, fill = ends - molecules, ends - molecules
    caught = np.empty(int(ends[-1]), np.int32)
    for n, found in zip(drawn, genes, strict=True):
        catch(found, n, rng.random(len(found)), atlas.caught, donors, caught, fill)
    counts = sp.csr_matrix(count_genes(caught, starts, fill, options.genes), (size, options.genes))
    lost = rng.random(counts.nnz) < options.dropout * np.exp(1.0 - counts.data.astype(np.float64))
    counts.data[lost] = 0
    counts.eliminate_zeros()
    return types, donors, counts


def format_gmt(atlas: Atlas, gene_names: Sequence[str]) -> str:
    """The programmes as gene sets: name, who uses it, genes, separated by tabs."""
    lines = []
    for number, genes in enumerate(atlas.programmes):
        users = [f"type{i:03d}" for i, used in enumerate(atlas.of_type) if number in used]
        described = "used by " + (", ".join(users) or "no cell type")
        lines.append("\t".join([f"PROGRAMME_{number:03d}", described, *(gene_names[gene] for gene in sorted(genes))]))
    return "\n".join(lines) + "\n"
