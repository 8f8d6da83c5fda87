"""The cells of an ablation: a file of counts, or a simulated atlas with its gene sets; made once."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np

from data_shards.counts.count_options import CountOptions
from data_shards.errors import OptionError
from data_shards.files.atomic import hash_path, whole_directory
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.write_atlas import regulation_path, write_atlas
from gm_train.ablation.definition import ATLAS, PBMC, Cells

#: How the values of scanpy's blood cells are turned back into counts.
PBMC_READING = CountOptions(raw=True, counts_from="log1p")
_ATLAS_FILE = "atlas.h5ad"
#: Genes among which random sets choose.
_ALIKE = 20


@dataclass(frozen=True)
class CellFiles:
    """The count files of an ablation.

    Attributes:
        files: one for each data set.
        options: how they are read.
        folder: of a simulated atlas and its gene sets; for a file, the folder of that file.
        hash: of what the cells are.
    """

    files: tuple[Path, ...]
    options: CountOptions
    folder: Path
    hash: str

    @property
    def regulation(self) -> Path:
        """The table of a simulated atlas with regulators."""
        return regulation_path(self.folder / _ATLAS_FILE)


def cell_files(cells: Cells, given: Path | None, folder: Path) -> CellFiles:
    """Find the count files, or simulate them.

    Args:
        cells: what the definition says.
        given: the file of counts; None for an atlas.
        folder: where an atlas is kept.

    Raises:
        OptionError: a file is needed and none is given, or the other way around.
    """
    if cells.source == ATLAS:
        if given is not None:
            raise OptionError(f"--data {given}: the cells of this ablation are simulated: leave --data out")
        return _simulated(cells, folder)
    if given is None:
        raise OptionError("the cells of this ablation are in a file: name it with --data FILE")
    if not given.exists():
        raise OptionError(f"--data {given}: no such file")
    options = PBMC_READING if cells.source == PBMC else CountOptions(**cells.reading)
    return CellFiles((given,), options, given.parent, hash_path(given))


def _simulated(cells: Cells, folder: Path) -> CellFiles:
    options = AtlasOptions(**cells.atlas)
    recipe = {"atlas": vars(options), "parts": cells.parts}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    made = folder / f"atlas-{key[:8]}"
    if not made.exists():
        with whole_directory(made) as work:
            gmt = write_atlas(work / _ATLAS_FILE, options)
            counts = ad.read_h5ad(work / _ATLAS_FILE)
            (work / "random.gmt").write_text(random_sets(gmt.read_text(), counts, options.seed))
            if cells.parts:
                _divide(work, cells.parts)
    files = tuple(made / f"atlas-{i}.h5ad" for i in range(1, len(cells.parts) + 1)) or (made / _ATLAS_FILE,)
    return CellFiles(files, CountOptions(), made, key)


def random_sets(programmes: str, atlas: ad.AnnData, seed: int) -> str:
    """Replace the genes of gene sets by others, so that sizes and overlaps stay and what belongs together does not.

    Each gene of the atlas takes the place of another one that about as many cells have, by a permutation among the 20
    genes next to it in that order.

    Args:
        programmes: of the atlas, as GMT.
        atlas: its counts, sparse.
        seed: of the permutations.
    """
    by_cells = atlas.var_names[np.argsort(np.asarray((atlas.X > 0).sum(0)).ravel(), kind="stable")]
    draw = np.random.default_rng([seed, 2])
    other: dict[str, str] = {}
    for first in range(0, len(by_cells), _ALIKE):
        alike = by_cells[first : first + _ALIKE].tolist()
        other |= zip(alike, draw.permutation(alike).tolist(), strict=True)
    lines = []
    for line in programmes.splitlines():
        name, _, *members = line.split("\t")
        lines.append("\t".join([f"RANDOM_{name}", "random genes", *sorted(other[gene] for gene in members)]))
    return "\n".join(lines) + "\n"


def _divide(folder: Path, parts: list[float]) -> None:
    """Write the cells of an atlas as several files, each cell in one of them, drawn at random."""
    atlas = ad.read_h5ad(folder / _ATLAS_FILE)
    order = np.random.default_rng(0).permutation(atlas.n_obs)
    cuts = np.rint(np.cumsum([0.0, *parts]) * atlas.n_obs).astype(int)
    for number, (first, last) in enumerate(itertools.pairwise(cuts), 1):
        atlas[np.sort(order[first:last])].copy().write_h5ad(folder / f"atlas-{number}.h5ad", compression="lzf")
