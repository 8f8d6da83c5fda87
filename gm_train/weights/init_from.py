"""Start a new run from the weights of a checkpoint (`model.init_from`), gene by gene."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import Checkpoint, load_model, open_checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.config.load import config_from_file
from gm_train.config.schema import Config, ModelConfig
from gm_train.model.genemamba import GeneMamba
from gm_train.weights.weight_files import State

#: The key of a run's identity that holds the hash of the weights it began with.
INIT = "init_from"
#: Tensors with one row a token.
_ROWS = ("embedding.weight", "output.weight", "output.bias")
_OF_ALL = ("arch", "d_model", "n_layers", "tie_output")
_OF_MAMBA = ("mixer", "norm", "d_state", "d_conv", "expand", "head_dim")
_OF_BOTH_DIRECTIONS = ("aggregation", "gate_per_layer")
_OF_TRANSFORMER = ("n_heads", "d_ff")


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run begins, or began, with.

    Attributes:
        identity: entry of the run's identity: the hash of the weights and the number of genes that they do not know.
        source: the checkpoint, by name and checked; None in a run that resumes.
        line: what to tell the user.
    """

    identity: dict[str, Any]
    source: Path | None
    line: str

    def load_into(self, model: GeneMamba, tokenizer: Tokenizer) -> None:
        """Set the weights of a model that is not sharded yet; a run that resumes loads its checkpoint later.

        Args:
            model: the run's model.
            tokenizer: of the run's store.

        Raises:
            DataError: the checkpoint cannot be read here, or is another one than on rank 0.
        """
        if self.source is None:
            return
        theirs, their_tokenizer, _ = load_model(Checkpoint.read(self.source))
        theirs.classifier = None  # a run that learns a label begins with a new one
        state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
        if hash_weights(state) != self.identity["weights"]:
            raise DataError(f"{self.source}: has other weights here than on rank 0: give every node the same files")
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}
        model.load_state_dict(own | state | _for_vocabulary(state, _rows(tokenizer, their_tokenizer)))


def initial_weights(config: Config, tokenizer: Tokenizer, resumed: Checkpoint | None) -> InitialWeights | None:
    """Check the weights that `model.init_from` names; None if it is empty. One rank does this for all.

    A new run records which checkpoint of a run directory it took: `model.init_from` is changed to its path. A run that
    resumes with the same setting does not read it again, since it may be gone. With another setting, the weights are
    read and compared by the run's identity.

    Args:
        config: of the run.
        tokenizer: of the run's store.
        resumed: the checkpoint from which the run resumes; None for a new run.

    Raises:
        DataError: there is no whole checkpoint, its model has other settings, or it knows none of the genes.
    """
    if not config.model.init_from:
        return None
    source = Path(os.path.abspath(config.model.init_from))
    if resumed is not None:
        recorded = config_from_file(resumed.path / "config.yaml").model.init_from
        saved = json.loads((resumed.path / "identity.json").read_text()).get(INIT)
        if recorded and saved and source in (Path(recorded), Path(recorded).parent.parent):
            config.model.init_from = recorded
            return InitialWeights(saved, None, "")
    checkpoint = open_checkpoint(source)
    config.model.init_from = str(checkpoint.path)
    checked = _check(checkpoint, config.model, tokenizer)
    return checked if resumed is None else InitialWeights(checked.identity, None, "")


def _check(checkpoint: Checkpoint, wanted: ModelConfig, tokenizer: Tokenizer) -> InitialWeights:
    model, theirs, config = load_model(checkpoint)
    model.classifier = None
    differing = [
        f"  model.{key}: {getattr(config.model, key)!r} in the checkpoint, {getattr(wanted, key)!r} in this run"
        for key in _settings(wanted, config.model)
        if getattr(config.model, key) != getattr(wanted, key)
    ]
    if differing:
        raise DataError(
            f"model.init_from={checkpoint.path}: is another model than this run's:\n"
            + "\n".join(differing)
            + "\nset these as in the checkpoint, or name another one"
        )
    rows = _rows(tokenizer, theirs)
    n_new = rows.count(-1)
    n_known, n_left = len(rows) - n_new, len(theirs.vocabulary.genes) - (len(rows) - n_new)
    if n_known == 0:
        raise DataError(
            f"model.init_from={checkpoint.path}: knows none of this run's {len(rows):,} genes (it has "
            f"{theirs.vocabulary.kind} ids such as {theirs.vocabulary.genes[0]}, the store {tokenizer.vocabulary.kind} "
            f"ids such as {tokenizer.vocabulary.genes[0]})"
        )
    identity = {"weights": hash_weights(model.state_dict()), "new_genes": n_new}
    where = f"initial weights: {checkpoint.path}, step {checkpoint.step:,}"
    line = f"{where}; it knows {n_known:,} of {len(rows):,} genes"
    line += f", {n_new:,} new ones begin at the mean embedding" if n_new else ""
    line += f"; {n_left:,} of its genes are not in this vocabulary" if n_left else ""
    return InitialWeights(identity, checkpoint.path, line)


def _rows(tokenizer: Tokenizer, theirs: Tokenizer) -> list[int]:
    """The token that each gene of `tokenizer` has in the other one, or -1."""
    return [theirs.vocabulary.token_of.get(gene, -1) for gene in tokenizer.vocabulary.genes]


def _settings(*models: ModelConfig) -> tuple[str, ...]:
    """The settings that decide names, shapes and meaning of the weights, most telling first."""
    archs = {model.arch for model in models}
    keys = _OF_ALL
    if archs == {"transformer"}:
        return keys + _OF_TRANSFORMER
    return keys + _OF_MAMBA + (_OF_BOTH_DIRECTIONS if archs == {"bimamba"} else ())


def _for_vocabulary(state: State, rows: list[int]) -> State:
    """Arrange the tensors with one row a token for another vocabulary.

    Args:
        state: weights for the old one.
        rows: the old token of each gene of the new one, or -1.
    """
    at = torch.tensor(rows)
    arranged = {}
    for name in _ROWS:
        if name in state:
            old = state[name]
            genes = old[at.clamp(min=0)].clone()
            genes[at < 0] = old[FIRST_GENE:].double().mean(0).to(old.dtype)
            arranged[name] = torch.cat([old[:FIRST_GENE], genes])
    return arranged
