"""Load a state of torch.distributed.checkpoint without running code that its pickles name.

The file `.metadata` of a state is a pickle, and so is each of its values that is not a tensor. PyTorch reads both with
`pickle`, which imports and calls whatever the file names. Here `.metadata` can name what PyTorch itself writes there,
and even that is not called: stand-ins take its place, from which the metadata is built afterwards. Values go through
torch's `weights_only` reader, as PyTorch reads tensors already.
"""

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from data_shards.errors import DataError

_METADATA = ".metadata"
#: Private names of PyTorch that its metadata holds.
_StorageInfo = filesystem._StorageInfo
_MemoryFormat = metadata._MEM_FORMAT_ENCODING
_Make = Callable[[tuple[Any, ...], Any], Any]


def load_state(folder: Path, state: dict[str, Any], no_dist: bool) -> None:
    """Load a state in place, as `torch.distributed.checkpoint.load` does, but run no code of its pickles.

    Args:
        folder: the folder of the state.
        state: what to load: tensors, and values in nested dictionaries.
        no_dist: read without other ranks.

    Raises:
        DataError: a file names something that a state does not need, or is damaged.
        torch.distributed.checkpoint.api.CheckpointException: the state does not hold what is to be loaded.
    """
    reader = StateReader(folder)
    try:
        load(state, storage_reader=reader, planner=_PlainValues(folder), no_dist=no_dist)
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, DataError | KeyboardInterrupt):  # PyTorch wraps Ctrl-C, too
                raise cause from None
            if isinstance(cause, pickle.UnpicklingError):
                raise _refusal(folder, cause) from None
        raise


class StateReader(FileSystemReader):
    """PyTorch's reader of a folder, with a `.metadata` that cannot run code.

    Args:
        folder: the folder of a state.

    Raises:
        DataError: `.metadata` names something that PyTorch does not write there, or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # Read at once: PyTorch would take an error in `read_metadata` for a missing file, and go on to another one.
        self._metadata = _read_metadata(folder / _METADATA)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what `.metadata` says."""
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


class _PlainValues(DefaultLoadPlanner):
    """PyTorch's planner, for values that torch's `weights_only` reader accepts."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value in its place."""
        try:
            content = torch.load(value, map_location="cpu", weights_only=True)
        # A damaged pickle can raise almost any exception.
        except Exception as error:
            raise _refusal(self._folder, error, f"its value {read_item.storage_index.fqn} ") from error
        # PyTorch's method reads with `weights_only=False`. So it gets a new pickle, of the content that was accepted.
        plain = io.BytesIO()
        torch.save(content, plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            content = _build(_MetadataUnpickler(file).load())
    # A damaged pickle can raise almost any exception.
    except Exception as error:
        raise _refusal(path, error) from error
    if not isinstance(content, Metadata):
        raise DataError(f"{path}: holds {type(content).__name__}, not PyTorch's metadata: use another checkpoint")
    return content


def _refusal(path: Path, error: BaseException, what: str = "") -> DataError:
    """The error for a pickle that was not read, from what stopped its reader."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        # Not torch's own message: it recommends to read the file with `weights_only=False`.
        return DataError(
            f"{path}: {what}cannot be read ({type(error).__name__}): it is damaged, or gm-train did not write it; use "
            "another checkpoint"
        )
    return DataError(
        f"{path}: {what}names {named[1]}, which a checkpoint of gm-train does not need and which could run any code, "
        "so it was not read. gm-train did not write this file: ask for the weights as `gm-train export` writes them"
    )


class _StandIn:
    """What a pickle makes in place of an object: it keeps the arguments and the state, and calls nothing."""

    make: _Make
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "_StandIn":
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _build(value: Any) -> Any:
    """Build the objects that stand-ins, also within containers, stand for."""
    if isinstance(value, _StandIn):
        return type(value).make(_build(value.args), _build(value.state))
    if isinstance(value, dict):
        return {_build(key): _build(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_build, value))
    return value


def _with_fields(kind: type) -> _Make:
    return lambda args, state: kind(*args, **(state or {}))


def _properties(args: tuple[Any, ...], state: Any) -> TensorProperties:
    made = TensorProperties(*args)
    made.__setstate__(state)  # type: ignore[no-untyped-call]
    return made


def _layout(args: tuple[Any, ...], state: Any) -> torch.layout:
    return {"torch.strided": torch.strided}[args[0]]


def _member(args: tuple[Any, ...], state: Any) -> Any:
    """A memory format by its name: early releases of Python 3.11 write `getattr(_MEM_FORMAT_ENCODING, name)`."""
    if args[0] is not _ALLOWED[_DCP + "metadata", "_MEM_FORMAT_ENCODING"]:
        raise pickle.UnpicklingError("GLOBAL builtins.getattr")
    return _MemoryFormat.__members__[args[1]]


_DCP = "torch.distributed.checkpoint."
_MAKERS: dict[tuple[str, str], _Make] = {
    (_DCP + "metadata", "Metadata"): _with_fields(Metadata),
    (_DCP + "metadata", "TensorStorageMetadata"): _with_fields(metadata.TensorStorageMetadata),
    (_DCP + "metadata", "BytesStorageMetadata"): _with_fields(metadata.BytesStorageMetadata),
    (_DCP + "metadata", "ChunkStorageMetadata"): _with_fields(metadata.ChunkStorageMetadata),
    (_DCP + "metadata", "MetadataIndex"): _with_fields(metadata.MetadataIndex),
    (_DCP + "metadata", "StorageMeta"): _with_fields(StorageMeta),
    (_DCP + "metadata", "TensorProperties"): _properties,
    (_DCP + "metadata", "_MEM_FORMAT_ENCODING"): lambda args, state: _MemoryFormat(args[0]),
    (_DCP + "filesystem", "_StorageInfo"): _with_fields(_StorageInfo),
    ("builtins", "getattr"): _member,
    ("pathlib", "PosixPath"): _with_fields(PurePosixPath),
    ("torch", "Size"): _with_fields(torch.Size),
    ("torch.serialization", "_get_layout"): _layout,
}
#: What `.metadata` may name: types of numbers, which are constants, and a stand-in for all else.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{pair: type(pair[1], (_StandIn,), {"make": staticmethod(make)}) for pair, make in _MAKERS.items()},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _ALLOWED[module, name]
