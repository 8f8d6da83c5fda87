"""Read tensors from files of weights, without running any pickle, and hash them."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_shards.errors import DataError

State = dict[str, Tensor]
WEIGHTS = "model.safetensors"
#: Files of weights in a folder, in the order in which they are looked for.
_IN_FOLDER = (WEIGHTS, "pytorch_model.bin")
_TORCH = (".bin", ".pt", ".pth")
#: Types that float32 holds exactly.
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


def find_weights(path: Path) -> Path:
    """Return the file of weights: the path itself, or the one in a folder.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return path
    found = [path / name for name in _IN_FOLDER if (path / name).is_file()]
    if not found:
        what = f"a folder without {' or '.join(_IN_FOLDER)}" if path.is_dir() else "no such file or folder"
        raise DataError(f"{path}: {what}: name a folder that `gm-train export` wrote, or a file of weights")
    return found[0]


def read_weights(path: Path) -> State:
    """Read all tensors of a file as float32, on the CPU.

    A `.bin` file is a pickle. It is read by torch's `weights_only` reader, which builds tensors and containers and
    calls nothing else.

    Args:
        path: `.safetensors`, or `.bin`, `.pt` or `.pth`.

    Raises:
        DataError: the file is damaged or of another kind, it holds something other than tensors, or a tensor has
            numbers that are not finite or a type that float32 cannot hold.
    """
    state = _read(path)
    for name, tensor in state.items():
        if tensor.dtype not in _NARROW:
            raise DataError(f"{path}: {name} is of type {tensor.dtype}: expected float32, bfloat16 or float16")
        if not bool(tensor.isfinite().all()):
            raise DataError(f"{path}: {name} has NaN or infinity: these weights cannot be used; get an earlier file")
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def _read(path: Path) -> State:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: is not a whole safetensors file ({error}): download or copy it again") from error
    if path.suffix not in _TORCH:
        raise DataError(f"{path}: is not a file of weights: expected .safetensors, or {', '.join(_TORCH)} of torch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: holds more than tensors, or is damaged, so it was not read: a pickle can run any code. If you "
            "trust the file, load it yourself and save its tensors with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}): download or copy it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: expected a dictionary of name -> tensor, as `model.state_dict()` gives it")
    return content
