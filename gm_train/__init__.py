"""Pretraining of GeneMamba, a bidirectional Mamba over a cell's genes, ranked by expression.

On the command line: `gm-train --help`. In Python:

    import lightning as L
    from gm_train import CellDataModule, GeneMambaModule, embed, load_config, load_model

    config = load_config("configs/demo.yaml", "optim.lr=1e-3")  # files and settings; later ones override earlier ones
    L.Trainer(max_steps=500).fit(GeneMambaModule(config), datamodule=CellDataModule(config))

    model, tokenizer, config = load_model("runs/demo")  # of a run's newest checkpoint, in evaluation mode
    vectors = embed("runs/demo", "cells.h5ad")  # float32 (n_cells, d_model)

docs/python.md has more.
"""

import importlib
import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gm_train.checkpoint.find import load_model
    from gm_train.config.load import load_config
    from gm_train.embedding.embed import embed
    from gm_train.loading.datamodule import CellDataModule
    from gm_train.train.module import GeneMambaModule

__all__ = ["CellDataModule", "GeneMambaModule", "embed", "load_config", "load_model"]

# Before torch loads OpenMP: threads that wait spin for microseconds, not milliseconds. On idle cores that costs
# nothing; on busy ones the default makes two threads several times slower than one.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

#: Imported at their first use: importing torch takes seconds, and `gm-train --help` should be fast.
_HOMES = {
    "CellDataModule": "gm_train.loading.datamodule",
    "GeneMambaModule": "gm_train.train.module",
    "embed": "gm_train.embedding.embed",
    "load_config": "gm_train.config.load",
    "load_model": "gm_train.checkpoint.find",
}


def __getattr__(name: str) -> Any:
    """Import a part of the API at its first use."""
    if name == "__version__":
        try:
            return importlib.metadata.version("gm-train")
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the API."""
    return sorted([*globals(), *__all__, "__version__"])
