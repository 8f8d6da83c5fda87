"""Checkpoints of small models with random weights, and Python without the project."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import Vocabulary
from gm_train.checkpoint.find import Checkpoint
from gm_train.checkpoint.save import About, save_weights_only
from gm_train.config.schema import Config, TaskConfig
from gm_train.loading.position import Position
from gm_train.model.build_model import build_model
from gm_train.model.classes import Classes
from gm_train.run.records import identity_of
from tests.support.small_models import small_config

GENES = tuple(f"ENSG{number:011d}" for number in range(100, 121))


def small_tokenizer(genes: tuple[str, ...] = GENES, seed: int = 0) -> Tokenizer:
    """A tokenizer with random medians, none of which is a short decimal."""
    medians = np.random.default_rng(seed).gamma(2.0, 1.0, len(genes)) + 0.1
    return Tokenizer(Vocabulary("ensembl", genes), medians, top_k=16)


def write_checkpoint(
    path: Path,
    seed: int = 0,
    genes: tuple[str, ...] = GENES,
    store_hash: str = "",
    classes: Classes | None = None,
    task: TaskConfig | None = None,
    **changes: Any,
) -> Checkpoint:
    """Write a checkpoint of a small model with noise on all parameters, at step 7 after 70 cells.

    Args:
        path: the checkpoint.
        seed: of the weights.
        genes: of its vocabulary.
        store_hash: hash of the store that it was trained on.
        classes: what its classifier predicts; None for a model without one.
        task: settings of the classifier.
        changes: settings of the model.
    """
    config = Config(model=small_config(**changes), task=task or TaskConfig())
    config.run.dir = ""
    tokenizer = small_tokenizer(genes)
    torch.manual_seed(seed)
    model = build_model(config, tokenizer.vocabulary.size, classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    identity = identity_of(config, store_hash, tokenizer.vocabulary.hash, tokenizer.medians_hash)
    about = About(config, identity, tokenizer, store_hash, classes=classes)
    return save_weights_only(path, model.state_dict(), Position(7, 70, {}), about)


def run_isolated(code: str, folder: Path, home: Path) -> str:
    """Run code in a Python that cannot import the project, only packages and what is in `folder`.

    The interpreter ignores the environment, the working directory and the `.pth` files of installed packages, through
    which an editable installation would be found.

    Args:
        code: to run; it is preceded by a check that the project is out of reach.
        folder: put on the path.
        home: for what libraries cache.

    Returns:
        What it printed.
    """
    packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    head = (
        f"import sys\nsys.path[:0] = {[str(folder)]!r}\nsys.path += {packages!r}\n"
        "import importlib.util\nfor name in ('gm_train', 'data_shards'):\n"
        "    assert importlib.util.find_spec(name) is None, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", head + code],
        cwd=home,
        env={"HOME": str(home), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
