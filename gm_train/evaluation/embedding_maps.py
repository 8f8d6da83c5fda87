"""Maps of cell embeddings in two dimensions, coloured by cell type and by batch."""

import contextlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from gm_train.evaluation.labels import Labels
from gm_train.evaluation.own_threads import torch_threads_kept
from gm_train.evaluation.picture_text import literal

#: Largest number of cells drawn: more take minutes and show nothing more.
MAX_DRAWN = 1_500
#: Colours. Where there are more labels, the rarest share the last one.
MAX_COLOURED = 40
DPI = 150
#: Inches. A picture has one map, so that its text can still be read where a page is as narrow as a phone.
_WIDTH = 4.6
_NEIGHBOURS = 15
_LONGEST = 24

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Colouring:
    """What the cells of a map are coloured by.

    Attributes:
        column: the column of obs, the title of the legend.
        names: object (n_cells,), None where a cell has none.
        numbered: whether each name's number stands on the map, where its cells are.
    """

    column: str
    names: Labels
    numbered: bool


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def draw_maps(
    embeddings: Mapping[str, F32], colourings: Sequence[Colouring], directory: Path, prefix: str
) -> list[Path]:
    """Draw a map of each embedding in each colouring (PNG); cells have the same place in all colourings.

    Maps are UMAPs; without umap-learn they are t-SNE.

    Args:
        embeddings: title to features of the same cells, float32 (n_cells, n_features).
        colourings: the first one's pictures are called `PREFIX-1.png` and so on, the others' `PREFIX-1-2.png`.
        directory: of the pictures.
        prefix: of their names.

    Returns:
        The paths of the pictures.
    """
    n_cells = len(colourings[0].names)
    # In random order, no type or batch is drawn over all others.
    drawn = np.random.default_rng(0).permutation(n_cells)[:MAX_DRAWN]
    paths = []
    for number, (title, features) in enumerate(embeddings.items(), 1):
        points = _umap(features[drawn]) if has_umap() else _tsne(features[drawn])
        for which, colouring in enumerate(colourings, 1):
            paths.append(directory / f"{prefix}-{number}{f'-{which}' if which > 1 else ''}.png")
            _draw_map(points, colouring.names[drawn], colouring, title, paths[-1])
    return paths


def _draw_map(points: F32, own: Labels, colouring: Colouring, title: str, path: Path) -> None:
    shown = np.array(["(none)" if name is None else str(name) for name in own])
    found, codes, counts = np.unique(shown, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names, numbers = found[order].tolist(), np.argsort(order)[codes]
    colours = list(mpl.color_sequences["tab20"])
    if len(names) > len(colours):
        colours += mpl.color_sequences["tab20b"]
    if has_rest := len(names) > MAX_COLOURED:
        names = [*names[: MAX_COLOURED - 1], f"{len(names) - MAX_COLOURED + 1} others"]
        numbers = np.minimum(numbers, MAX_COLOURED - 1)
        colours[MAX_COLOURED - 1] = (0.87, 0.87, 0.87)
    columns = 2 if len(names) > 6 else 1
    figure = Figure(figsize=(_WIDTH, 5.1 + 0.16 * -(-len(names) // columns)), layout="constrained", facecolor="white")
    axis = figure.subplots()
    size = 16 if len(points) < 500 else 9
    axis.scatter(points[:, 0], points[:, 1], s=size, color=[colours[number] for number in numbers], linewidths=0)
    handles = []
    for number, name in enumerate(names):
        text = literal(f"{number + 1}  {_short(name)}" if colouring.numbered else _short(name))
        handles.append(Line2D([], [], marker="o", linestyle="", markersize=6, color=colours[number], label=text))
        if colouring.numbered and not (has_rest and number == len(names) - 1):
            here = points[numbers == number]
            middle = here[np.argmin(np.linalg.norm(here - np.median(here, axis=0), axis=1))]
            outline = [withStroke(linewidth=2.2, foreground="white")]
            axis.annotate(
                str(number + 1),
                middle,
                xytext=(0, 2.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8.5,
                weight="bold",
                path_effects=outline,
            )
    kind = "UMAP" if has_umap() else "t-SNE"
    axis.set_title(literal(f"{title}\nby {colouring.column}"), fontsize=11)
    axis.set_xlabel(f"{kind} 1", fontsize=9)
    axis.set_ylabel(f"{kind} 2", fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_box_aspect(1)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelspacing=0.25,
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
    figure.savefig(path, dpi=DPI)


@torch_threads_kept()
def _umap(features: F32) -> F32:
    """Compute a UMAP: float32 (n_cells, 2), the same each time."""
    import umap
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    # Otherwise each process compiles these again, which takes longer than the rest. It must where numba finds no folder
    # that it can write to: then numba raises RuntimeError.
    with contextlib.suppress(RuntimeError):
        smooth_knn_dist.enable_caching()
        compute_membership_strengths.enable_caching()
    n_neighbours = min(_NEIGHBOURS, len(features) - 1)
    init = "pca" if features.shape[1] > 1 and np.ptp(features, axis=0).any() else "random"
    # Its own search for neighbours would be compiled as well.
    distances, numbers = NearestNeighbors(n_neighbors=n_neighbours).fit(features).kneighbors(features)
    found = (numbers, distances.astype(np.float32))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")  # new cells cannot be placed; none are
        reducer = umap.UMAP(n_neighbors=n_neighbours, init=init, random_state=0, n_jobs=1, precomputed_knn=found)
        return np.asarray(reducer.fit_transform(features), dtype=np.float32)


def _tsne(features: F32) -> F32:
    """Compute t-SNE: float32 (n_cells, 2), the same each time."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    init = "pca" if features.shape[1] > 1 else "random"
    with threadpool_limits(1):  # several threads take five times as long where others use the cores
        points = TSNE(perplexity=perplexity, init=init, random_state=0).fit_transform(features)
    return np.asarray(points, dtype=np.float32)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:11].rstrip()} … {name[-10:].lstrip()}"
