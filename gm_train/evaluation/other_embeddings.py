"""Embeddings that were made elsewhere, to be scored beside the model's on the same cells."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata.io
import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_shards.counts.formats import open_root
from data_shards.errors import DataError
from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.figures import MODEL
from gm_train.evaluation.tasks import TASKS

_OBSM = "obsm:"


def read_embeddings(given: Sequence[str], cells: EvaluationCells) -> dict[str, F32]:
    """Read vectors as `read_embedding` does, by name.

    Raises:
        DataError: as there; or two have the same name, or one has that of the model or a control.
    """
    taken = {MODEL, *(control for task in TASKS if task.takes_embeddings for control in task.controls)}
    found: dict[str, F32] = {}
    for one in given:
        name, features = read_embedding(one, cells)
        if name in found or name in taken:
            raise DataError(f"--embedding {one}: another row is called {name!r}: rename the file or the key")
        found[name] = features
    return found


def read_embedding(given: str, cells: EvaluationCells) -> tuple[str, F32]:
    """Read one vector for each cell of an evaluation.

    Args:
        given: `obsm:KEY`, an array of the count files; or the path of an `.npy` file with a row for each cell of the
            one count file, in its order.
        cells: the cells.

    Returns:
        A name: KEY, or the file's without its ending; and float32 (n_cells, n_features).

    Raises:
        DataError: it is missing, has another shape, or a value of a cell is not finite.
    """
    if given.startswith(_OBSM):
        name = given.removeprefix(_OBSM)
        values = {which: _read_obsm(path, name) for which, path in cells.files.items()}
        places = {which: f"{path}: obsm[{name!r}]" for which, path in cells.files.items()}
    else:
        path = Path(given)
        name = path.stem
        if len(cells.files) != 1:
            raise DataError(
                f"{path}: has rows of one count file, and {len(cells.files)} are given: evaluate one of them, or use "
                "vectors that were in obsm of each when the store was made (obsm:KEY)"
            )
        (which,) = cells.files
        values, places = {which: _read_npy(path)}, {which: str(path)}
    widths = {places[which]: array.shape[1] for which, array in values.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"vectors of different widths: {', '.join(f'{place} {n}' for place, n in widths.items())}")
    features = np.empty((len(cells.row), next(iter(widths.values()))), np.float32)
    for which, array in values.items():
        here = cells.data_set == which
        rows = cells.source_row[here]
        if len(array) != (n_cells := _n_cells(cells.files[which])):
            raise DataError(f"{places[which]}: has {len(array):,} rows, but {cells.files[which]} has {n_cells:,} cells")
        features[here] = array[rows]
        if not (finite := np.isfinite(features[here]).all(1)).all():
            raise DataError(f"{places[which]}: row {rows[~finite][0]:,} (from 0) has a value that is not finite")
    return name, features


def _read_npy(path: Path) -> npt.NDArray[Any]:
    if not path.exists():
        raise DataError(f"{path}: no such file; an array of the count files is named obsm:KEY")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array that numpy.save wrote ({error}), nor obsm:KEY") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: holds several arrays: save one with numpy.save")
    return _numbers(array, str(path))


def _read_obsm(path: Path, key: str) -> npt.NDArray[Any]:
    with _opened(path) as root:
        obsm = root.get("obsm", {})
        if key not in obsm:
            there = f"there is {', '.join(sorted(obsm))}" if len(obsm) else "the file has no arrays there"
            raise DataError(f"{path}: no obsm[{key!r}]; {there}")
        element = anndata.io.read_elem(obsm[key])
    if scipy.sparse.issparse(element):
        element = element.toarray()
    return _numbers(np.asarray(element), f"{path}: obsm[{key!r}]")


def _n_cells(path: Path) -> int:
    with _opened(path) as root:
        return len(root["obs"][root["obs"].attrs["_index"]])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    root = open_root(path)
    try:
        yield root
    finally:
        if isinstance(root, h5py.File):
            root.close()


def _numbers(array: npt.NDArray[Any], place: str) -> npt.NDArray[Any]:
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise DataError(f"{place}: is {array.dtype} of shape {array.shape}; wanted are numbers, cells x features")
    return array
