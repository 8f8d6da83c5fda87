"""Promise 5: only complete, undamaged checkpoints of the same run are ever used."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from gm_train.checkpoint.find import COMMIT, list_checkpoints
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import history, train


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
def test_promise_05_a_damaged_checkpoint_is_skipped_with_a_warning(
    atlas: Atlas, finished: Path, copy: Path, damage
) -> None:  # type: ignore[no-untyped-def]
    damage(copy / "checkpoints" / "step-00000012")
    code, log = resume(atlas, copy)
    assert code == 0
    assert "so this checkpoint is skipped" in log
    assert "from step 8" in log
    assert history(copy) == history(finished)


def test_promise_05_without_commit_there_is_no_checkpoint(atlas: Atlas, finished: Path, copy: Path) -> None:
    (copy / "checkpoints" / "step-00000012" / COMMIT).unlink()
    code, log = resume(atlas, copy)
    assert code == 0
    assert "from step 8" in log
    assert history(copy) == history(finished)


def test_promise_05_a_full_disk_leaves_the_last_checkpoint_whole(atlas: Atlas, copy: Path) -> None:
    """The next checkpoint does not fit on the disk: it is removed, the others stay, and the run can be resumed."""
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


@pytest.mark.parametrize("other", ["medians", "vocabulary"])
def test_promise_05_another_store_is_refused(atlas: Atlas, copy: Path, tmp_path: Path, other: str) -> None:
    """The same cells, ranked by the medians of only one file, or with half of the genes."""
    genes = tmp_path / "genes.txt"
    genes.write_text("".join(f"gene{i:04d}\n" for i in range(40)))
    files = atlas.files if other == "vocabulary" else atlas.files[1:]
    make_medians(files, tmp_path / "medians.zarr", say=lambda line: None)
    make_store(
        atlas.files, tmp_path / "medians.zarr", tmp_path / "other.zarr", top_k=48, say=lambda line: None,
        genes_file=genes if other == "vocabulary" else None,
    )  # fmt: skip
    before = history(copy)
    code, log = resume(atlas, copy, "trainer.max_steps=20", f"data.store={tmp_path / 'other.zarr'}")
    assert code == 1
    assert f"{other}: " in log
    assert "belongs to another run" in log
    assert history(copy) == before


def test_promise_05_a_checkpoint_older_than_a_setting_is_not_another_run(atlas: Atlas, copy: Path) -> None:
    """A setting that is not in the checkpoint counts as its default."""
    file = copy / "checkpoints" / "step-00000012" / "identity.json"
    identity = json.loads(file.read_text())
    assert identity.pop("objective.paper_compat") is False
    file.write_text(json.dumps(identity))
    commit = json.loads((file.parent / COMMIT).read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    commit["files"]["identity.json"] = {"size": file.stat().st_size, "sha256": digest}
    (file.parent / COMMIT).write_text(json.dumps(commit))
    code, log = resume(atlas, copy, "trainer.max_steps=13")
    assert (code, "from step 12" in log) == (0, True)
    code, log = resume(atlas, copy, "trainer.max_steps=14", "objective.paper_compat=true")
    assert (code, "objective.paper_compat" in log) == (1, True)


def test_promise_05_without_any_whole_checkpoint_the_run_is_not_thrown_away(atlas: Atlas, copy: Path) -> None:
    before = history(copy)
    for checkpoint in list_checkpoints(copy / "checkpoints"):
        flip_a_byte(checkpoint.path)
    for _ in range(2):
        code, log = resume(atlas, copy, "trainer.max_steps=20")
        assert code == 1
        assert "none of the run's checkpoints is whole" in log
        assert history(copy) == before


def test_promise_05_damaged_checkpoints_do_not_push_out_whole_ones(atlas: Atlas, copy: Path) -> None:
    """The damaged checkpoint of step 12 has a higher step than the next one, but the next one is kept."""
    flip_a_byte(copy / "checkpoints" / "step-00000012")
    code, _ = resume(atlas, copy, "trainer.max_steps=10", "checkpoint.keep_last=1")
    assert code == 0
    assert list_checkpoints(copy / "checkpoints")[-1].step == 10
    assert (copy / "checkpoints" / "step-00000012.damaged").is_dir()


def test_what_may_change_may_change(atlas: Atlas, copy: Path) -> None:
    code, log = resume(atlas, copy, "trainer.max_steps=14", "data.micro_rows=4", "data.cache_mb=16")
    assert code == 0
    assert "resuming" in log
