"""Turn weights, our own export or the published layout, into a checkpoint that every command reads."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from gm_train.checkpoint.find import Checkpoint
from gm_train.checkpoint.save import About, save_weights_only
from gm_train.checkpoint.state import hash_weights
from gm_train.config.schema import Config
from gm_train.loading.position import Position
from gm_train.model.build_model import build_model
from gm_train.model.genemamba import GeneMamba
from gm_train.run.records import identity_of
from gm_train.weights.exported_folder import CONFIG, FILES, Exported, check_hashes, read_exported
from gm_train.weights.imported_checkpoint import IMPORTED
from gm_train.weights.published_layout import from_published, is_published, sizes_of
from gm_train.weights.published_vocabulary import MEDIANS, TOKENS, PublishedVocabulary, read_published_vocabulary
from gm_train.weights.weight_files import State, find_weights, read_weights

Say = Callable[[str], None]
#: The published code pads with token 1.
_PAD_ROW = 1


@dataclass(frozen=True)
class PublishedOptions:
    """What published weights do not say themselves.

    Attributes:
        vocabulary: JSON of gene id -> token; None: the file beside the weights.
        medians: JSON of gene id -> median, or "none"; None: the file beside the weights.
        aggregation: how the directions are joined; None: as the `config.json` beside the weights says.
        top_k: most tokens of a cell.
    """

    vocabulary: Path | None = None
    medians: str | None = None
    aggregation: str | None = None
    top_k: int = 2048


def import_weights(weights: Path, out: Path, options: PublishedOptions, say: Say) -> Checkpoint:
    """Write a checkpoint of weights.

    Args:
        weights: a folder that `gm-train export` wrote, or a folder or file in the published layout.
        out: the checkpoint.
        options: for the published layout.
        say: takes lines for the user.

    Raises:
        DataError: `out` exists, or the weights are damaged, of an unknown layout or of other shapes than they say.
    """
    if out.exists():
        raise DataError(f"{out}: exists already: remove it or choose another OUT")
    ours = (weights / FILES).is_file() or _has_our_config(weights / CONFIG)
    if ours:
        check_hashes(weights)
    file = find_weights(weights)
    tensors = read_weights(file)
    if ours and not is_published(tensors):
        with tempfile.TemporaryDirectory() as scratch:
            read = read_exported(weights, tensors, Path(scratch))
        layout = "gm-train"
    elif is_published(tensors):
        read = _read_published(file, tensors, options, say)
        layout = "published"
    else:
        some = ", ".join(sorted(tensors)[:3])
        raise DataError(
            f"{file}: is of an unknown layout (tensors {some} …): expected a folder that `gm-train export` wrote (give "
            "the folder, not a file in it), or "
            "the published GeneMamba's names such as mamba_mixer.layers.0.mamba.in_proj.weight"
        )
    model = build_model(read.config, read.tokenizer.vocabulary.size, read.classes)
    fill(model, read.state, file)
    identity = read.identity | {IMPORTED: {"layout": layout, "weights": hash_weights(read.state)}}
    about = About(read.config, identity, read.tokenizer, read.store_hash, classes=read.classes)
    checkpoint = save_weights_only(out, model.state_dict(), read.position, about)
    size = f"{len(read.tokenizer.vocabulary.genes):,} genes, {sum(p.numel() for p in model.parameters()):,} parameters"
    say(f"{out}: a checkpoint of weights in the {layout} layout: {size}, step {read.position.step:,}")
    return checkpoint


def fill(model: GeneMamba, state: State, source: Path) -> None:
    """Load weights into a model.

    Raises:
        DataError: names or shapes are not those of the model; the message names the first that differs.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in [*own, *given]:
        if own.get(name) != given.get(name):
            raise DataError(
                f"{source}: {name} has the shape {given.get(name, 'none: it is missing')}, its settings and vocabulary "
                f"need {own.get(name, 'no such tensor')}: the weights do not belong to them"
            )
    model.load_state_dict(state)


def _has_our_config(path: Path) -> bool:
    try:
        return "gm_train" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _read_published(file: Path, tensors: State, options: PublishedOptions, say: Say) -> Exported:
    config_path = file.parent / CONFIG
    try:
        published = dict(json.loads(config_path.read_text())) if config_path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{config_path}: cannot be read ({error}): copy it again or move it away") from error
    state, others = from_published(file, tensors)
    model = sizes_of(file, state, published, options.aggregation)
    vocabulary = _vocabulary(file, state, published, options)
    if others:
        say(f"{file}: left out {len(others)} tensors that are not of the model: {', '.join(others[:3])}")
    _tell(file, vocabulary, say)
    # As far as we could read, the published model was trained on next tokens, which its own layers have already seen.
    config = Config(model=model)
    config.run.dir = ""
    config.objective.language, config.objective.paper_compat = "next_token", True
    tokenizer = vocabulary.tokenizer
    identity = identity_of(config, "", tokenizer.vocabulary.hash, tokenizer.medians_hash)
    return Exported(_rows(state, vocabulary), tokenizer, config, identity, Position(), "")


def _vocabulary(file: Path, state: State, published: dict[str, Any], options: PublishedOptions) -> PublishedVocabulary:
    beside = {name: file.parent / name for name in (TOKENS, MEDIANS)}
    tokens = options.vocabulary or (beside[TOKENS] if beside[TOKENS].is_file() else None)
    medians = options.medians or (str(beside[MEDIANS]) if beside[MEDIANS].is_file() else None)
    if tokens is None or medians is None:
        lacking = [name for name, given in (("--vocabulary", tokens), ("--medians", medians)) if given is None]
        raise DataError(
            f"{file}: weights in the published layout need {' and '.join(lacking)}: JSON of gene id -> token, and of "
            "gene id -> non-zero median (--medians none ranks raw counts)"
        )
    n_rows = len(state["embedding.weight"])
    pad = published.get("pad_token_id")
    pad_row = pad if isinstance(pad, int) else _PAD_ROW
    return read_published_vocabulary(
        tokens, None if medians == "none" else Path(medians), n_rows, pad_row, options.top_k
    )


def _tell(file: Path, vocabulary: PublishedVocabulary, say: Say) -> None:
    if vocabulary.no_genes:
        say(f"{file}: left out tokens that are no genes: {', '.join(vocabulary.no_genes[:5])}")
    if vocabulary.without_median:
        say(f"{file}: left out {vocabulary.without_median:,} genes without a median")
    for name, row in (("pad", vocabulary.pad), ("mask", vocabulary.mask)):
        if row is None:
            say(f"{file}: has no {name} token; <{name}> gets the mean of the genes")


def _rows(state: State, vocabulary: PublishedVocabulary) -> State:
    """Put the rows of special tokens and genes into our order."""
    arranged = dict(state)
    for name in ("embedding.weight", "output.weight", "output.bias"):
        genes = state[name][vocabulary.rows]
        mean = genes.double().mean(0).to(genes.dtype)
        specials = [mean if row is None else state[name][row] for row in (vocabulary.pad, vocabulary.mask)]
        arranged[name] = torch.cat([torch.stack(specials), genes])
    return arranged
