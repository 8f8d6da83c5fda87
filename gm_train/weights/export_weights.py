"""Write a checkpoint's weights as a folder that people can use without gm-train."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from data_shards.errors import DataError
from data_shards.files.atomic import whole_directory
from gm_train.checkpoint.find import best_checkpoint, load_model, open_checkpoint
from gm_train.loading.position import Position
from gm_train.weights.exported_folder import (
    CARD,
    CONFIG,
    FILES,
    Exported,
    file_names,
    why_not_exported,
    without_paths,
    write_code,
    write_config,
    write_hashes,
)
from gm_train.weights.model_card import CardFacts, model_card
from gm_train.weights.published_layout import SPECIALS, sizes_in_doubt, to_published, why_not_published
from gm_train.weights.published_vocabulary import write_dictionaries
from gm_train.weights.weight_files import WEIGHTS, State

Say = Callable[[str], None]


def export_weights(path: Path, out: Path, published: bool, store: str | None, license: str, say: Say) -> None:
    """Write the newest or the named checkpoint into a new folder.

    Args:
        path: a checkpoint, or a run for its newest one (of a run that learned a label, for its best one).
        out: the folder.
        published: write the published layout instead of ours.
        store: the store that the model was trained on, for the card; None: where the run found it.
        license: for the card; empty: none is named.
        say: takes lines for the user.

    Raises:
        DataError: `out` exists, there is no whole checkpoint, or the format does not have its model.
    """
    if out.exists():
        raise DataError(f"{out}: exists already: remove it or choose another OUT")
    checkpoint = open_checkpoint(path)
    if checkpoint.classes is not None:
        checkpoint = best_checkpoint(path)  # the one that `gm-train predict` takes
    model, tokenizer, config = load_model(checkpoint)
    classes = checkpoint.classes
    if classes is not None and published:
        say(f"{checkpoint.path}: its classifier of {classes.label!r} has no place in the published layout: left out")
        model.classifier = classes = None
    reason = why_not_published(config.model) if published else why_not_exported(config.model)
    if reason and published:
        raise DataError(f"{checkpoint.path}: cannot be written in the published layout: {reason}; leave out --format")
    if reason:
        raise DataError(
            f"{checkpoint.path}: cannot be exported: {reason} is not in the self-contained file, which has "
            "bimamba and mamba with this project's aggregations"
        )
    identity = json.loads((checkpoint.path / "identity.json").read_text())
    position = Position.load(checkpoint.path / "position.json")
    exported = Exported(
        {name: tensor.detach() for name, tensor in model.state_dict().items()},
        tokenizer,
        without_paths(config),
        identity,
        replace(position, lanes={}),
        str(identity["store"]),
        classes,
    )
    facts = CardFacts.of(checkpoint, exported, store or config.data.store, license)
    with whole_directory(out) as folder:
        if published:
            _write_published(folder, exported)
        else:
            _save(folder, file_names(exported.state))
            write_config(folder, exported)
            write_code(folder)
            tokenizer.save(folder)
        (folder / CARD).write_text(model_card(facts, exported, published))
        write_hashes(folder)
    if published and (doubt := sizes_in_doubt(config.model)):
        say(f"{out}: the published code, as far as we could read it, builds other sizes by itself: {doubt}")
    say(
        f"{out}: weights of {checkpoint.path.name}, step {checkpoint.step:,}, {facts.n_parameters:,} parameters, as "
        f"{'the published layout' if published else 'safetensors, with a self-contained model'}"
    )


def _save(folder: Path, state: State) -> None:
    """Write weights, readable for whom other new files are: safetensors would let nobody else read them."""
    # transformers reads a file only if it says which framework wrote it.
    try:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / FILES).touch()
    shutil.copymode(folder / FILES, folder / WEIGHTS)


def _write_published(folder: Path, exported: Exported) -> None:
    model = exported.config.model
    _save(folder, to_published(exported.state))
    content = {
        "d_model": model.d_model,
        "mamba_layer": model.n_layers,
        "vocab_size": exported.tokenizer.vocabulary.size,
        "mode": model.aggregation,
        "pad_token_id": SPECIALS["<pad>"],
        "mask_token_id": SPECIALS["<mask>"],
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n")
    write_dictionaries(folder, exported.tokenizer, SPECIALS)
