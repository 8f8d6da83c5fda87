"""Reference runs for the tests of several ranks."""

from pathlib import Path

import pytest

from gm_train.config.parts import STRATEGIES
from tests.conftest import Atlas, tiny_words, write_gene_sets
from tests.support.training_runs import train, train_ranks

STEPS = 20
#: The strategies that spread a step over several ranks.
SPREADING = [name for name in STRATEGIES if name != "single"]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings: 20 steps with both losses, validations and checkpoints; four lanes, one row in a micro-batch."""
    sets = write_gene_sets(tmp_path_factory.mktemp("sets") / "sets.gmt")
    return [
        f"trainer.max_steps={STEPS}", f"optim.schedule_steps={STEPS}", "checkpoint.every_steps=4",
        "trainer.validate_every_steps=5", f"objective.pathways={sets}", "objective.pathway_size=[5,200]",
        "data.micro_rows=1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def one_process(atlas: Atlas, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run in one process."""
    folder = tmp_path_factory.mktemp("one_process")
    assert train([*tiny_words(atlas.store, folder / "run"), *words], folder / "log") == 0
    return folder / "run"


@pytest.fixture(scope="session", params=SPREADING)
def two_ranks(
    request: pytest.FixtureRequest, atlas: Atlas, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The name of a strategy, and the directory of its run on two ranks, never interrupted."""
    folder = tmp_path_factory.mktemp(request.param)
    run = folder / "run"
    command = [*tiny_words(atlas.store, run), *words, f"trainer.strategy={request.param}"]
    codes = train_ranks(command, 2, folder / "log")
    assert codes == [0, 0], (folder / "log").read_text()
    return request.param, run
