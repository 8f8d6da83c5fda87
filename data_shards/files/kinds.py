"""Recognise what a path holds, for messages about a path of the wrong kind."""

import json
from pathlib import Path

STORE, MEDIANS, COUNTS = "a token store", "a medians file", "a file of counts"
CHECKPOINT, RUN, CORPUS = "a checkpoint", "a run directory", "a ranked corpus"
GENE_SETS, CONFIGURATION, EXPORT = "a file of gene sets", "a configuration", "a folder of `gm-train export`"

#: What to do with each kind if a token store is wanted.
TO_A_STORE = {
    MEDIANS: "give the store that `gm-train data shards` makes with it",
    COUNTS: "rank its cells with `gm-train data shards` and give the store that this makes",
    CHECKPOINT: "data.store in its config.yaml names the store",
    RUN: "data.store in its config.yaml names the store",
    CORPUS: "make a store of it with `gm-train data import`",
}

_MAGIC = {b"\x89HDF": COUNTS, b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file"}
_ENDINGS = {".gmt": GENE_SETS, ".yaml": CONFIGURATION, ".yml": CONFIGURATION, ".h5ad": COUNTS}


def kind_of(path: Path) -> str | None:
    """Say what a path holds, such as "a token store".

    Returns:
        One of the names above, or a plainer one such as "a folder"; None if the path does not exist, or cannot be
        read, or holds something like a store that is damaged.
    """
    try:
        return _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    except (OSError, ValueError):
        return None


def is_other(path: Path, wanted: str) -> str | None:
    """Say that a path holds something else than is wanted, such as "is a medians file, not a token store".

    Args:
        path: the path.
        wanted: the kind that is wanted.

    Returns:
        None if it is of that kind, or its kind is not known.
    """
    kind = kind_of(path)
    return None if kind in (None, wanted) else f"is {kind}, not {wanted}"


def _kind_of_folder(path: Path) -> str | None:
    names = {entry.name for entry in path.iterdir()}
    if "COMMIT" in names:
        return CHECKPOINT
    if "checkpoints" in names or ("config.yaml" in names and names & {"metrics.jsonl", "environment.json"}):
        return RUN
    for name in ("zarr.json", ".zattrs"):
        if name in names:
            content = json.loads((path / name).read_text())
            attributes = content.get("attributes", {}) if name == "zarr.json" else content
            if "tokenizer_hash" in attributes:
                return STORE
            if "method" in attributes and "gene_table" in attributes:
                return MEDIANS
            return COUNTS if attributes.get("encoding-type") == "anndata" else "a Zarr folder"
    if {"files.json", "config.json", "modeling_genemamba.py"} <= names:
        return EXPORT
    if "state.json" in names or "dataset_info.json" in names:
        return CORPUS
    return "a folder" if names else "an empty folder"


def _kind_of_file(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(8)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    return _ENDINGS.get(path.suffix, "a file" if start else "an empty file")
