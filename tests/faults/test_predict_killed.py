"""`gm-train predict` that is ended by a signal: nothing half-written stays."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import CONTEXT


@pytest.fixture(scope="module")
def annotator(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("annotator") / "run"
    words = ["task.name=classify", "task.label=cell_type", "trainer.max_steps=4", "optim.warmup_steps=2"]
    fit(load_config(*tiny_words(atlas.store, run), *words, "trainer.validate_every_steps=4"))
    return run


def _predict(words: list[str], log: str, number: signal.Signals, call: int) -> None:
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        from gm_train.annotation import predict_file
        from gm_train.cli.main import main
        from gm_train.embedding import token_chunks

        # The tests' process may ignore SIGINT, as under nohup, and its children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        token_chunks.CHUNK_CELLS = 10
        real, calls = predict_file.choose_classes, 0

        def signalled(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), number)
            return real(*arguments)

        predict_file.choose_classes = signalled
        code = main(["predict", *words])
        file.flush()
    os._exit(code)


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr", "out.csv"])
def test_a_signal_leaves_nothing(
    annotator: Path, atlas: Atlas, tmp_path: Path, name: str, number: signal.Signals, call: int
) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    words = [str(annotator), str(atlas.files[0]), str(folder / name)]
    process = CONTEXT.Process(target=_predict, args=(words, str(log), number, call))
    process.start()
    process.join()
    assert process.exitcode == 1, log.read_text()
    assert log.read_text().endswith("gm-train: interrupted\n")
    assert list(folder.iterdir()) == []
