"""Compressed HDF5 arrays are read as h5py reads them, and damage raises the same errors as in h5py."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.counts import gzip_chunks
from data_shards.counts.gzip_chunks import SpanReader

CHUNK = 16


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> h5py.File:
    """Arrays of 100 elements, one of each kind that an AnnData file may hold."""
    rng = np.random.default_rng(0)
    file = h5py.File(tmp_path_factory.mktemp("arrays") / "arrays.h5", "w")
    kinds: dict[str, dict[str, Any]] = {
        "gzip": {"compression": "gzip"},
        "gzip-9": {"compression": "gzip", "compression_opts": 9},
        "shuffled": {"compression": "gzip", "shuffle": True},
        "checksum": {"compression": "gzip", "fletcher32": True},
        "lzf": {"compression": "lzf"},
        "none": {},
    }
    for dtype in ("<f4", "<i4", "<i8", "u1", ">f8"):
        for kind, options in kinds.items():
            file.create_dataset(
                f"{kind}{dtype}", data=rng.integers(0, 9, 100).astype(dtype), chunks=(CHUNK,), **options
            )
    file.create_dataset("contiguous", data=np.arange(100))
    partly = file.create_dataset("partly written", (100,), "<f4", chunks=(CHUNK,), compression="gzip", fillvalue=3)
    partly[20:40] = np.arange(20)
    # A chunk may be stored uncompressed if compression would not make it smaller.
    skipped = file.create_dataset("skipped", data=np.arange(100, dtype="<i4"), chunks=(CHUNK,), compression="gzip")
    skipped.id.write_direct_chunk((CHUNK,), np.arange(CHUNK, dtype="<i4").tobytes(), filter_mask=1)
    return file


@given(st.lists(st.tuples(st.integers(0, 101), st.integers(0, 40)), min_size=1, max_size=5))
def test_spans_are_those_of_h5py(arrays: h5py.File, spans: list[tuple[int, int]]) -> None:
    """Spans may be consecutive or anywhere, cross chunks and reach beyond the end."""
    for array in arrays.values():
        reader = SpanReader(array)
        for start, size in spans:
            found = reader.read(start, start + size)
            expected = array[start : start + size]
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


def test_two_threads_may_read(arrays: h5py.File) -> None:
    reader, array = SpanReader(arrays["gzip<i8"]), arrays["gzip<i8"][:]
    with ThreadPoolExecutor(2) as threads:
        starts = [CHUNK * (i % 6) for i in range(2_000)]
        found = threads.map(lambda start: reader.read(start, start + 3), starts)
        for start, values in zip(starts, found, strict=True):
            np.testing.assert_array_equal(values, array[start : start + 3])


def test_gzip_alone_is_inflated_here(arrays: h5py.File, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    isal = gzip_chunks.isal_zlib.decompress

    def decompress(*arguments: Any, **options: Any) -> bytes:
        calls.append(arguments)
        return isal(*arguments, **options)

    monkeypatch.setattr(gzip_chunks.isal_zlib, "decompress", decompress)
    inflated = set()
    for name, array in arrays.items():
        calls.clear()
        SpanReader(array).read(0, 100)
        if calls:
            inflated.add(name)
    # "partly written" is left to h5py, which knows the fill value of chunks that were never written.
    assert inflated == {name for name in arrays if name.startswith("gzip")} | {"skipped"}


@pytest.mark.parametrize("content", [b"", b"not gzip", b"\x78\x9c\x03\x00\x00\x00\x00\x01"])
def test_a_damaged_chunk_is_for_hdf5_to_refuse(tmp_path: Path, content: bytes) -> None:
    """The last content is a valid stream without elements."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("a", data=np.arange(100), chunks=(CHUNK,), compression="gzip")
        if content:
            array.id.write_direct_chunk((CHUNK,), content)
        else:
            kept = array.id.read_direct_chunk((CHUNK,))[1]
            array.id.write_direct_chunk((CHUNK,), kept[:-4] + b"abcd")  # break the checksum
    with h5py.File(tmp_path / "a.h5") as file:
        reader = SpanReader(file["a"])
        np.testing.assert_array_equal(reader.read(0, CHUNK), np.arange(CHUNK))
        with pytest.raises(OSError, match=r"filter returned failure|inflate"):
            reader.read(0, 100)
        np.testing.assert_array_equal(reader.read(2 * CHUNK, 100), np.arange(2 * CHUNK, 100))
