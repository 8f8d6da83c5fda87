"""The folder that `gm-train export` writes: names, `config.json`, and the hashes by which damage is found."""

import copy
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import MASK, PAD
from gm_train.config.load import config_from_file
from gm_train.config.schema import Config, ModelConfig
from gm_train.loading.position import Position
from gm_train.model.classes import Classes
from gm_train.weights import modeling_genemamba
from gm_train.weights.weight_files import WEIGHTS, State

CONFIG, FILES, CARD, CODE = "config.json", "files.json", "README.md", "modeling_genemamba.py"
#: Begins the names of all tensors but those of the heads, as transformers' classes have them.
_PREFIX = "genemamba."
_HEADS = ("output.", "classifier.")
_FORMAT = 1
#: Fields of `ModelConfig` that decide what the model computes.
_MODEL = (
    "arch", "aggregation", "gate_per_layer", "norm", "d_model", "n_layers", "d_state", "d_conv", "expand", "head_dim",
    "chunk", "tie_output",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds beside its code and its card.

    Attributes:
        state: weights under our parameter names.
        tokenizer: vocabulary, medians and options.
        config: settings of the run that trained the model, without its paths.
        identity: settings and hashes of that run.
        position: its step and its cells.
        store_hash: hash of the store that it was trained on; empty if there was none.
        classes: what its classifier predicts; None without one.
    """

    state: State
    tokenizer: Tokenizer
    config: Config
    identity: dict[str, Any]
    position: Position
    store_hash: str
    classes: Classes | None = None


def why_not_exported(config: ModelConfig) -> str | None:
    """Say why the self-contained file cannot compute a model; None if it can."""
    if config.arch not in ("bimamba", "mamba") or config.mixer != "mamba2":
        return f"model.arch={config.arch}, model.mixer={config.mixer}"
    if config.arch == "bimamba" and config.aggregation not in modeling_genemamba.AGGREGATIONS:
        return f"model.aggregation={config.aggregation}"
    return None


def file_names(state: State) -> State:
    """Rename weights to the names in the file."""
    return {name if name.startswith(_HEADS) else _PREFIX + name: tensor for name, tensor in state.items()}


def write_config(folder: Path, exported: Exported) -> None:
    """Write `config.json`: sizes for the code beside it, and what `gm-train import` needs.

    Args:
        folder: where to write it.
        exported: what the folder is to hold.
    """
    model = {key: getattr(exported.config.model, key) for key in _MODEL}
    if exported.config.model.arch == "mamba":
        model["aggregation"] = "gate"  # not used, and the code knows this name
    classes, task = exported.classes, exported.config.task
    if classes is not None:
        model["id2label"] = {str(number): name for number, name in enumerate(classes.names)}
        model["label2id"] = {name: number for number, name in enumerate(classes.names)}
        model |= {"head_layers": task.head_layers, "head_width": task.head_width}
    content = {
        "model_type": "genemamba",
        "architectures": [f"GeneMambaFor{'MaskedLM' if classes is None else 'SequenceClassification'}"],
        "auto_map": {
            "AutoConfig": "modeling_genemamba.GeneMambaConfig",
            "AutoModel": "modeling_genemamba.GeneMambaModel",
            "AutoModelForMaskedLM": "modeling_genemamba.GeneMambaForMaskedLM",
            "AutoModelForSequenceClassification": "modeling_genemamba.GeneMambaForSequenceClassification",
        },
        "dtype": "float32",
        "vocab_size": exported.tokenizer.vocabulary.size,
        "pad_token_id": PAD,
        "mask_token_id": MASK,
        "tie_word_embeddings": False,  # `tie_output` scales the states, which transformers' own tying does not
        **model,
        "gm_train": {
            "format": _FORMAT,
            "step": exported.position.step,
            "cells": exported.position.cells,
            "store": exported.store_hash,
            "identity": exported.identity,
            "settings": asdict(without_paths(exported.config)),
            "classes": classes and classes.to_json(),
        },
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n")


def without_paths(config: Config) -> Config:
    """Return a copy without paths and without what concerns the machine alone."""
    config = copy.deepcopy(config)
    empty = Config()
    config.run.dir, config.data.store, config.objective.pathways, config.model.init_from = "", "", "", ""
    config.tracking, config.cluster = empty.tracking, empty.cluster
    config.trainer.callbacks = []
    return config


def write_code(folder: Path) -> None:
    """Copy the self-contained model."""
    shutil.copyfile(Path(modeling_genemamba.__file__), folder / CODE)


def write_hashes(folder: Path) -> None:
    """Write `files.json`: size and SHA-256 of every file but the card, which is there to be edited."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": hash_path(file)}
        for file in sorted(folder.iterdir())
        if file.name not in (CARD, FILES)
    }
    (folder / FILES).write_text(json.dumps({"files": files}, indent=1) + "\n")


def check_hashes(folder: Path) -> None:
    """Compare every file with `files.json`.

    Raises:
        DataError: a file is missing or differs.
    """
    try:
        files = dict(json.loads((folder / FILES).read_text())["files"])
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: its {FILES} is missing or damaged ({error}): copy the whole folder again"
        ) from error
    for needed in (WEIGHTS, CONFIG):
        if needed not in entries:
            raise DataError(f"{folder}: its {FILES} does not list {needed}: copy the whole folder again")
    for name, (size, sha256) in entries.items():
        file = folder / name
        if Path(name).name != name:
            raise DataError(f"{folder}: its {FILES} lists {name!r}, which is not in the folder: it is damaged")
        if not file.is_file():
            raise DataError(f"{folder}: {name} is missing: copy the whole folder again")
        if file.stat().st_size != size or hash_path(file) != sha256:
            raise DataError(
                f"{folder}: {name} does not have the hash in {FILES}: it was changed or damaged: copy it again"
            )


def read_exported(folder: Path, weights: State, scratch: Path) -> Exported:
    """Read a folder whose hashes were checked.

    Args:
        folder: the folder.
        weights: tensors of its file of weights.
        scratch: a folder for a file that is read back.

    Raises:
        DataError: `config.json` is not of this version, or the tokenizer cannot be read.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())["gm_train"]
        if content["format"] != _FORMAT:
            raise DataError(f"{path}: is of format {content['format']}, this program reads {_FORMAT}")
        settings, identity = dict(content["settings"]), dict(content["identity"])
        classes = Classes.from_json(content["classes"]) if content.get("classes") else None
        position = Position(int(content["step"]), int(content["cells"]), {})
        store_hash = str(content["store"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not written by `gm-train export` ({type(error).__name__}: {error})") from error
    (scratch / "settings.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    config = config_from_file(scratch / "settings.yaml")
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    return Exported(state, Tokenizer.load(folder), config, identity, position, store_hash, classes)
