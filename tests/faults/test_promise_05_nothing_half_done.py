"""Promise 5: only whole checkpoints of the same run are ever used."""

import json
import shutil
from pathlib import Path

import pytest

from gm_train.checkpoint import COMMIT, list_checkpoints
from tests.conftest import Atlas, tiny_words
from tests.faults.runs import history, train


@pytest.fixture(scope="module")
def finished(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with checkpoints at 4 (none is pruned), 8 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    assert train([*tiny_words(atlas.store, folder / "run"), "checkpoint.keep_last=9"], folder / "log") == 0
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def resume(atlas: Atlas, run: Path, *words: str, file_limit: int | None = None) -> tuple[int, str]:
    log = run.parent / "log"
    code = train([*tiny_words(atlas.store, run), "checkpoint.keep_last=9", *words], log, file_limit)
    return code, log.read_text()


def biggest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_a_byte(checkpoint: Path) -> None:
    file = biggest(checkpoint)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_off(checkpoint: Path) -> None:
    file = biggest(checkpoint)
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "position.json").unlink()


def tear_commit(checkpoint: Path) -> None:
    file = checkpoint / COMMIT
    file.write_text(file.read_text()[:50])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off, lose_a_file, tear_commit])
def test_promise_05_a_damaged_checkpoint_is_passed_over_loudly(
    atlas: Atlas, finished: Path, copy: Path, damage
) -> None:  # type: ignore[no-untyped-def]
    damage(copy / "checkpoints" / "step-00000012")
    code, log = resume(atlas, copy)
    assert code == 0
    assert "passed over" in log
    assert "from step 8" in log
    assert history(copy) == history(finished)


def test_promise_05_without_commit_there_is_no_checkpoint(atlas: Atlas, finished: Path, copy: Path) -> None:
    (copy / "checkpoints" / "step-00000012" / COMMIT).unlink()
    code, log = resume(atlas, copy)
    assert code == 0
    assert "from step 8" in log
    assert history(copy) == history(finished)


def test_promise_05_a_full_disk_leaves_the_last_checkpoint_whole(atlas: Atlas, copy: Path) -> None:
    """The system refuses the bytes of the next checkpoint: it disappears, the others stay, and training can go on."""
    before = [checkpoint.step for checkpoint in list_checkpoints(copy / "checkpoints")]
    code, log = resume(atlas, copy, "trainer.max_steps=16", file_limit=40_000)
    assert code == 1
    assert "could not be written" in log
    assert "Traceback" not in log
    assert [checkpoint.step for checkpoint in list_checkpoints(copy / "checkpoints")] == before
    assert not (copy / "checkpoints" / "step-00000016").exists()
    code, _ = resume(atlas, copy, "trainer.max_steps=16")
    assert code == 0
    assert list_checkpoints(copy / "checkpoints")[-1].step == 16


def test_promise_05_pruning_keeps_the_newest_and_the_best(atlas: Atlas, tmp_path: Path) -> None:
    words = ["checkpoint.keep_last=1", "checkpoint.every_steps=2", "trainer.validate_every_steps=2"]
    assert train([*tiny_words(atlas.store, tmp_path / "run"), *words], tmp_path / "log") == 0
    kept = list_checkpoints(tmp_path / "run" / "checkpoints")
    scores = {row["step"]: row["val_loss"] for row in history(tmp_path / "run") if "val_loss" in row}
    assert {checkpoint.step for checkpoint in kept} == {12, min(scores, key=lambda step: (scores[step], -step))}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model.d_model=64"], "model.d_model"),
        (["model.aggregation=mean"], "model.aggregation"),
        (["data.lanes=2"], "data.lanes"),
        (["run.seed=1"], "run.seed"),
        (["objective.gamma=0.2"], "objective.gamma"),
        (["optim.schedule_steps=99"], "optim.schedule_steps"),
    ],
)
def test_promise_05_another_run_is_refused_with_a_diff(atlas: Atlas, copy: Path, words: list[str], key: str) -> None:
    before = history(copy)
    code, log = resume(atlas, copy, "trainer.max_steps=20", *words)
    assert code == 1
    assert key in log
    assert "in the checkpoint" in log
    assert history(copy) == before


@pytest.mark.parametrize("key", ["vocabulary", "medians", "store"])
def test_promise_05_another_vocabulary_or_other_medians_are_refused(atlas: Atlas, copy: Path, key: str) -> None:
    """As if the store had been built again with other genes: the identity in every checkpoint names other hashes."""
    for checkpoint in list_checkpoints(copy / "checkpoints"):
        file = checkpoint.path / "identity.json"
        identity = json.loads(file.read_text()) | {key: "0" * 64}
        file.write_text(json.dumps(identity))
        commit = json.loads((checkpoint.path / COMMIT).read_text())
        import hashlib

        commit["files"]["identity.json"] = {
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        (checkpoint.path / COMMIT).write_text(json.dumps(commit))
    code, log = resume(atlas, copy, "trainer.max_steps=20")
    assert code == 1
    assert f"{key}: '000" in log


def test_what_may_change_may_change(atlas: Atlas, copy: Path) -> None:
    code, log = resume(atlas, copy, "trainer.max_steps=14", "data.micro_rows=4", "data.cache_mb=16")
    assert code == 0
    assert "resuming" in log
