"""Helpers shared by the tests of launching."""

from pathlib import Path

from gm_train.config.load import load_config
from gm_train.config.schema import Config

GOOD = ["data.store=a.zarr", "data.lanes=8", "data.micro_rows=1", "cluster.nodes=2", "cluster.gpus_per_node=2"]


def configured(*words: str) -> Config:
    """Load `GOOD` with further settings."""
    return load_config(*GOOD, *words)


def executable(path: Path, text: str) -> Path:
    """Write an executable script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
