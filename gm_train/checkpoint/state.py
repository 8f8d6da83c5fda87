"""Weights and optimizer state under the model's parameter names, in files that do not depend on the number of ranks."""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from gm_train.checkpoint.state_reader import load_state
from gm_train.model.genemamba import GeneMamba


@contextlib.contextmanager
def _single_process() -> Iterator[None]:
    """Suppress torch's warning, at every save and load, that there is only one process. Here that is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield


def save_by_name(folder: Path, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
    """Write weights and optimizer state with torch.distributed.checkpoint; each rank writes its part.

    Args:
        folder: the folder to write; it is created.
        model: the model, sharded or not.
        optimizer: its optimizer.

    Raises:
        OSError, torch.distributed.checkpoint.api.CheckpointException: the state could not be written.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    with _single_process():
        save(
            {"model": model_state, "optimizer": optimizer_state},
            checkpoint_id=folder,
            no_dist=not dist.is_initialized(),
        )


def load_by_name(folder: Path, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state in place, sharded as the model and the optimizer are.

    `fused` of the optimizer is not loaded; it stays as configured.

    Args:
        folder: the folder that `save_by_name` has written.
        model: the model to load into.
        optimizer: its optimizer.

    Raises:
        DataError: the state names code that could run, or is damaged.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _single_process():
        load_state(folder, state, no_dist=not dist.is_initialized())
    for loaded, group in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
        loaded["fused"] = group["fused"]
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def save_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights without optimizer state, by this process alone.

    Args:
        folder: the folder to write; it is created.
        weights: tensors by the model's parameter names.

    Raises:
        OSError, RuntimeError, torch.distributed.checkpoint.api.CheckpointException: they could not be written.
    """
    with _single_process():
        save({"model": weights}, checkpoint_id=folder, no_dist=True)


def load_weights(folder: Path, model: GeneMamba) -> None:
    """Load only the weights, into a model that is not sharded, without other ranks.

    Raises:
        DataError: the state names code that could run, or is damaged.
    """
    state = {"model": model.state_dict()}
    with _single_process():
        load_state(folder, state, no_dist=True)
    model.load_state_dict(state["model"])


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, shapes, types and numbers of weights, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
