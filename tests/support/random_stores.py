"""Make token stores of random cells quickly, without a tokenizer, and damage them."""

import struct
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from data_shards.store.manifest import SCHEMA, TEST, TRAIN, VALIDATION, DatasetEntry, Manifest
from data_shards.store.writer import ArrayWriter, choose_block_cells

#: Elements of an inner chunk and of a shard, so small that a few cells have several of them.
CHUNK, SHARD = 64, 512
_EMPTY: dict[str, Any] = {"int": 0, "float": 0.0, "str": "", "bool": False, "dict[str, Any]": {}}


def _make(kind: type, **known: Any) -> Any:
    """Make a dataclass with the given fields; the others are empty."""
    return kind(**{field.name: _EMPTY.get(str(field.type)) for field in fields(kind)} | known)


def write_array(group: Path, name: str, values: npt.NDArray[Any]) -> None:
    """Write an array as a store does, but in small chunks and shards.

    Args:
        group: folder of the Zarr group.
        name: of the array.
        values: (n,).
    """
    size = values.dtype.itemsize
    array = zarr.create_array(
        group / name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(CHUNK,),
        shards=(SHARD,),
        compressors=[BloscCodec(typesize=size, cname="lz4", shuffle="shuffle"), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[:] = values


def write_store(
    path: Path, splits: Sequence[npt.NDArray[np.uint8]], block_cells: int, seed: int = 0, longest: int = 24
) -> Manifest:
    """Write a store with data sets d0, d1, …; each cell has 1 to `longest` of 200 genes.

    Args:
        path: the store.
        splits: for each data set, the split of each cell, uint8 (n_cells,).
        block_cells: cells in a block.
        seed: of the cells.
        longest: largest number of tokens in a cell.
    """
    rng = np.random.default_rng(seed)
    entries = []
    for number, split in enumerate(splits):
        lengths = rng.integers(1, longest + 1, len(split))
        cells = [2 + rng.permutation(200)[:n] for n in lengths]
        group = path / f"d{number}"
        write_array(group, "tokens", np.concatenate(cells).astype(np.uint16))
        write_array(group, "indptr", np.concatenate([[0], np.cumsum(lengths)]))
        write_array(group, "split", split.astype(np.uint8))
        n_train, n_validation, n_test = (int((split == value).sum()) for value in (TRAIN, VALIDATION, TEST))
        entries.append(
            _make(
                DatasetEntry,
                name=f"d{number}",
                n_cells=len(split),
                n_tokens=int(lengths.sum()),
                n_train=n_train,
                n_validation=n_validation,
                n_test=n_test,
                content_hash=f"{seed}",
            )
        )
    manifest: Manifest = _make(
        Manifest, schema=SCHEMA, n_genes=200, top_k=longest, block_cells=block_cells, datasets=tuple(entries), files={}
    )
    zarr.open_group(path, mode="a")
    manifest.save(path)
    return manifest


def write_long_store(path: Path, data_sets: Sequence[tuple[int, int]]) -> Manifest:
    """Write a store of training cells, with chunks and blocks of the usual sizes.

    Args:
        path: the store.
        data_sets: for each, the number of cells and their mean number of tokens.
    """
    rng = np.random.default_rng(0)
    entries = []
    for number, (n_cells, mean) in enumerate(data_sets):
        lengths = np.clip(rng.normal(mean, mean / 4, n_cells).astype(np.int64), 20, 2048)
        tokens = (2 + rng.integers(0, 20_000, int(lengths.sum()))).astype(np.uint16)
        group = path / f"d{number}"
        zarr.open_group(group, mode="a")
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        for name, values in (("tokens", tokens), ("indptr", bounds), ("split", np.zeros(n_cells, np.uint8))):
            writer = ArrayWriter(group, name)
            writer.append(values)
            writer.close()
        known = {"n_cells": n_cells, "n_tokens": len(tokens), "n_train": n_cells}
        entries.append(_make(DatasetEntry, name=f"d{number}", content_hash="", **known))
    block_cells = choose_block_cells([entry.n_cells for entry in entries], sum(entry.n_tokens for entry in entries))
    manifest: Manifest = _make(
        Manifest, schema=SCHEMA, n_genes=20_000, top_k=2048, block_cells=block_cells, datasets=tuple(entries), files={}
    )
    zarr.open_group(path, mode="a")
    manifest.save(path)
    return manifest


def flip_byte(shard: Path, chunk: int) -> None:
    """Flip a byte in an inner chunk of a shard file; the index at the file's end locates the chunk."""
    content = bytearray(shard.read_bytes())
    n_chunks = _chunks_of_shard(shard)
    offset, size = struct.unpack_from("<QQ", content, len(content) - 4 - 16 * n_chunks + 16 * chunk)
    content[offset + size // 2] ^= 255
    shard.write_bytes(content)


def _chunks_of_shard(shard: Path) -> int:
    array: Any = zarr.open_array(shard.parents[1], mode="r")
    return int(array.shards[0] // array.chunks[0])
