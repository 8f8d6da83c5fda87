"""Promise 7: the tracker never stops the training, and metrics are delivered later."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.conftest import Atlas, tiny_words
from tests.support.mlflow_records import expected, mirrored
from tests.support.training_runs import history, start, train


def words(atlas: Atlas, run: Path, mlflow: str, steps: int) -> list[str]:
    return [*tiny_words(atlas.store, run), f"tracking.mlflow={mlflow}", f"trainer.max_steps={steps}"]


def test_promise_07_a_run_and_its_resume_are_one_mlflow_run(atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    panel = ["evaluation.every_steps=4"]
    assert train([*words(atlas, run, "auto", 6), *panel], log) == 0
    first_id = json.loads((run / "tracking.json").read_text())["run_id"]
    assert train([*words(atlas, run, "auto", 12), *panel], log) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gm-train")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [one.info.run_id for one in runs] == [first_id]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params["model.d_model"] == "32"
    for key in ("loss", "l_lang", "grad_norm", "lr", "tokens_per_s", "val_loss", "panel_masked", "panel_masked_beyond"):
        assert mirrored(client, run, key) == expected(run, key)
    assert list(expected(run, "panel_masked")) == [4, 8, 12]
    artifacts = {artifact.path for artifact in client.list_artifacts(first_id)}
    assert {"config.yaml", "environment.json", "report.html"} <= artifacts


def test_promise_07_training_does_not_need_mlflow_and_delivers_later(atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # Nothing listens on the discard port.
    assert train(words(atlas, run, "http://127.0.0.1:9", 6), log) == 0
    assert "MLflow" in log.read_text()
    assert len(expected(run, "loss")) == 6
    assert train(words(atlas, run, "auto", 12), log) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert mirrored(client, run, "loss") == expected(run, "loss")
    assert len(expected(run, "loss")) == 12


class _Broken(BaseHTTPRequestHandler):
    """Answers every request with an error of the server."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def broken() -> Iterator[int]:
    """The port of a server that is broken."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("server", [broken, silent])
def test_promise_07_a_slow_or_broken_server_changes_no_step(
    server: Callable[[], AbstractContextManager[int]], atlas: Atlas, tmp_path: Path
) -> None:
    undisturbed, run, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "log"
    assert train(words(atlas, undisturbed, "none", 6), log) == 0
    # Otherwise a request waits ten seconds for an answer.
    env = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with server() as port:
        process = start(words(atlas, run, f"http://127.0.0.1:{port}", 6), log, env=env)
        process.join()
    assert process.exitcode == 0, log.read_text()
    assert "MLflow did not take all metrics" in log.read_text()
    assert history(run) == history(undisturbed)
    assert train(words(atlas, run, "auto", 6), log) == 0
    assert mirrored(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), run, "loss") == expected(run, "loss")
