"""What a run keeps of the cells that it is trained on, for `gm-train data lookup`.

A checkpoint holds the manifest of its store, in `store/`: names, SHA-256 of files, numbers of cells. The hashes of the
cells would be 9 bytes a cell in every checkpoint, so the run directory holds one copy of them, in `cell_hashes/`.
"""

import json
import logging
from pathlib import Path

from data_shards.errors import DataError
from data_shards.files.location import Location, location_of
from data_shards.inspect.lookup import KnownCells, KnownDataset, no_hashes
from data_shards.store.copy_hashes import copy_hashes
from data_shards.store.manifest import DatasetEntry, Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import Checkpoint
from gm_train.config.load import config_from_file
from gm_train.loading.position import Position

log = logging.getLogger(__name__)

#: Folder of a checkpoint, and of a run.
STORE, CELL_HASHES = "store", "cell_hashes"


def keep_cell_hashes(run: Path, store: Location, manifest: Manifest) -> None:
    """Copy the hashes of a store's cells into a run, unless they are there. If it fails, warn: training can go on."""
    out = run / CELL_HASHES
    try:
        if not (out / "zarr.json").is_file() or Manifest.load(out) != manifest:
            copy_hashes(store, manifest, out)
    except DataError as error:
        log.warning("hashes of cells are not kept: `gm-train data lookup` will need the store (%s)", error)


def kept_manifest(checkpoint: Path) -> Manifest | None:
    """The manifest of the store in a checkpoint; None if an earlier version wrote the checkpoint."""
    folder = checkpoint / STORE
    return Manifest.load(folder) if folder.is_dir() else None


def known_cells(checkpoint: Checkpoint, store: str | None = None) -> KnownCells:
    """The cells that a checkpoint was trained on, with hashes from the run's copy or from the store.

    Args:
        checkpoint: the checkpoint.
        store: its store, if that is not at the recorded place any more.

    Raises:
        DataError: the checkpoint does not hold its manifest, and the store is not found; or `store` is another store.
    """
    config = config_from_file(checkpoint.path / "config.yaml")
    run = checkpoint.path.parent.parent
    at = [_absolute(place) for place in (store or config.data.store,) if place]
    if store is None and (run / "config.yaml").is_file():  # that path is absolute, the checkpoint's may not be
        at.append(_absolute(config_from_file(run / "config.yaml").data.store))
    places: dict[Location, Manifest] = {}
    for place in dict.fromkeys([run / CELL_HASHES, *at]):
        try:
            places[place] = Manifest.load(place)
        except DataError:
            if store is not None and place in at:
                raise
    own = kept_manifest(checkpoint.path) or _manifest_of_identity(checkpoint, places, at)
    if store is not None and not any(_holds(places[at[0]], entry) for entry in own.datasets):
        raise DataError(
            f"{store}: has no data set of {checkpoint.path}: name the store of its training, or leave out --store"
        )

    def known(entry: DatasetEntry) -> KnownDataset:
        trained = config.data.weights.get(entry.name, 1) > 0
        for place, manifest in places.items():
            if (held := _holds(manifest, entry)) is not None and held.cell_hash is not None:
                return KnownDataset(entry, place, "", trained)
        reason = no_hashes(entry) or (
            f"neither {run / CELL_HASHES} nor the store {_text(at)} has them: name the store with --store"
        )
        return KnownDataset(entry, None, reason, trained)

    if config.model.init_from:
        log.warning(
            "the run began with the weights of %s, whose cells are not searched: look there too with `gm-train data "
            "lookup %s FILE`",
            config.model.init_from, config.model.init_from,
        )  # fmt: skip
    position = Position.load(checkpoint.path / "position.json")
    name = f"{checkpoint.path} (step {position.step:,}, {position.cells:,} cells trained on, repeats included)"
    return KnownCells(name, Tokenizer.load(checkpoint.path / "tokenizer"), tuple(map(known, own.datasets)))


def _absolute(store: str) -> Location:
    place = location_of(store)
    return place.absolute() if isinstance(place, Path) else place


def _text(places: list[Location]) -> str:
    return " or ".join(dict.fromkeys(map(str, places)))


def _holds(manifest: Manifest, entry: DatasetEntry) -> DatasetEntry | None:
    """The entry of a manifest with the same cells and splits as another, or None."""
    same = (one for one in manifest.datasets if (one.name, one.content_hash) == (entry.name, entry.content_hash))
    return next(same, None)


def _manifest_of_identity(checkpoint: Checkpoint, places: dict[Location, Manifest], at: list[Location]) -> Manifest:
    """The manifest among `places` that the checkpoint was trained on."""
    wanted = json.loads((checkpoint.path / "identity.json").read_text())["store"]
    if not wanted:
        raise DataError(f"{checkpoint.path}: was imported, and nothing is known about the cells of its training")
    for manifest in places.values():
        own = manifest if manifest.hash == wanted else manifest.before_adding(wanted)
        if own is not None:
            return own
    raise DataError(
        f"{checkpoint.path}: was imported, or written by a version that kept no list of its data sets, and its store "
        f"is not at {_text(at)}: name the store with --store"
    )
