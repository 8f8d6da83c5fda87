"""Checkpoints whose files run code when pickle reads them, with hashes that are right."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from data_shards.files.atomic import hash_path
from gm_train.checkpoint.find import COMMIT, load_whole, open_checkpoint


class Runs:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"mkdir {self.folder}",)


def poison_metadata(state: Path, made: Path) -> None:
    """Put `Runs` into the metadata."""
    content = FileSystemReader(state).read_metadata()
    content.planner_data = Runs(made)
    (state / ".metadata").write_bytes(pickle.dumps(content))
    commit(state.parent)


def poison_weight(state: Path, made: Path) -> None:
    """Put `Runs` in the place of a weight."""
    rewrite(state, lambda model, optimizer: model.update({"norm.weight": Runs(made)}))


def poison_option(state: Path, made: Path) -> None:
    """Put `Runs` in the place of a number among the optimizer's options."""
    rewrite(state, lambda model, optimizer: optimizer["param_groups"][0].update(lr=Runs(made)))


def rewrite(state: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Write a state again with other content."""
    parts = get_state_dict(*load_whole(open_checkpoint(state.parent)))
    model, optimizer = dict(parts[0]), dict(parts[1])
    change(model, optimizer)
    shutil.rmtree(state)
    save({"model": model, "optimizer": optimizer}, checkpoint_id=state, no_dist=True)
    commit(state.parent)


def commit(checkpoint: Path) -> None:
    """Put the hashes of a changed checkpoint right."""
    content = json.loads((checkpoint / COMMIT).read_text())
    files = [file for file in checkpoint.rglob("*") if file.is_file() and file.name != COMMIT]
    content["files"] = {
        str(file.relative_to(checkpoint)): {"size": file.stat().st_size, "sha256": hash_path(file)} for file in files
    }
    (checkpoint / COMMIT).write_text(json.dumps(content))
