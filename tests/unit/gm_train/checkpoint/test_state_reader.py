"""Opening somebody else's checkpoint runs no code of its pickles, whichever command opens it."""

import copyreg
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from data_shards.errors import DataError
from gm_train.checkpoint.find import open_checkpoint
from gm_train.checkpoint.state_reader import StateReader, load_state
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words
from tests.support.poisoned_checkpoints import Runs, poison_metadata, poison_option, poison_weight


@pytest.fixture(scope="module")
def trained(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=4", "optim.warmup_steps=2"))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose checkpoint a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def state(run: Path) -> Path:
    """The state of its checkpoint."""
    return open_checkpoint(run).state


def words_of(command: str, run: Path, atlas: Atlas) -> list[str]:
    out = str(run.parent / "out")
    new = [*tiny_words(atlas.store, run.parent / "new"), "trainer.max_steps=8"]
    return {
        "embed": ["embed", str(run), str(atlas.files[1]), out + ".zarr"],
        "eval": ["eval", str(run), str(atlas.files[1]), "--out", out, "--tasks", "masked"],
        "export": ["export", str(run), out],
        "fit": ["fit", *tiny_words(atlas.store, run), "optim.warmup_steps=2", "trainer.max_steps=8"],
        "init_from": ["fit", *new, f"model.init_from={run}"],
    }[command]


COMMANDS = ("embed", "eval", "export", "fit", "init_from")


@pytest.mark.parametrize(
    ("command", "poison"),
    [
        *((command, poison) for command in COMMANDS for poison in (poison_metadata, poison_weight)),
        ("fit", poison_option),
    ],
)
def test_no_command_runs_a_pickle(
    atlas: Atlas,
    run: Path,
    state: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    poison: Callable[[Path, Path], None],
) -> None:
    made = tmp_path / "made"
    poison(state, made)
    assert main(["ckpt", "verify", str(run)]) == 0
    capsys.readouterr()
    assert main(words_of(command, run, atlas)) == 1
    printed = capsys.readouterr().err
    assert str(state) in printed
    assert "names posix.system, which a checkpoint of gm-train does not need" in printed
    assert "Traceback" not in printed
    assert not made.exists()
    if poison is not poison_metadata:
        assert ("norm.weight" if poison is poison_weight else "param_groups.0.lr") in printed
    # The checkpoint is dangerous indeed: PyTorch's own reader runs it.
    reader = FileSystemReader(state)
    if poison is poison_metadata:
        reader.read_metadata()
        assert made.exists()


def test_the_same_is_read_as_by_pytorch(state: Path) -> None:
    ours, theirs = StateReader(state).read_metadata(), FileSystemReader(state).read_metadata()
    assert ours.storage_meta is not None
    assert theirs.storage_meta is not None
    assert ours.storage_meta.save_id == theirs.storage_meta.save_id
    ours.storage_meta = theirs.storage_meta = None
    assert ours == theirs


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_name_is_imported(state: Path, tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    (state / ".metadata").write_bytes(pickle.dumps(Runs(made), protocol))
    with pytest.raises(DataError, match=r"\.metadata: names posix\.system, .*`gm-train export`"):
        StateReader(state)
    assert not made.exists()


class Calls:
    """A pickle of this calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(getattr, Metadata, "__init__"), "builtins.getattr"),
        (Calls(getattr, "text", "upper"), "builtins.getattr"),
        (Calls(eval, "1"), "builtins.eval"),
        (torch.load, "torch.serialization.load"),
        (FileSystemReader, "torch.distributed.checkpoint.filesystem.FileSystemReader"),
    ],
)
def test_what_pytorch_does_not_write_is_refused(state: Path, content: Any, named: str) -> None:
    (state / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=named.replace(".", r"\.")):
        StateReader(state)


def test_an_attribute_of_an_allowed_name_is_refused(state: Path) -> None:
    """Since protocol 4, a name may have dots, which `pickle` follows to attributes."""
    inner = pickle.PROTO + b"\x04" + b"".join(
        pickle.SHORT_BINUNICODE + bytes([len(text)]) + text for text in (b"torch", b"serialization.os.system")
    )  # fmt: skip
    (state / ".metadata").write_bytes(inner + pickle.STACK_GLOBAL + pickle.STOP)
    with pytest.raises(DataError, match=r"names torch\.serialization\.os\.system"):
        StateReader(state)


def test_allowed_classes_stay_as_they_are(state: Path) -> None:
    """`pickle` can also set attributes of a class that it has found."""
    before = dict(vars(Metadata))
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    for attributes in (b"(N(dS'version'\nS'x'\nst", b"(dS'version'\nS'x'\ns"):
        (state / ".metadata").write_bytes(name + attributes + b"b.")
        with pytest.raises(DataError, match=r"\.metadata: .*cannot be read|holds"):
            StateReader(state)
    assert dict(vars(Metadata)) == before


def test_a_memory_format_by_name(state: Path) -> None:
    """Early releases of Python 3.11, such as 3.11.2, write it so."""
    content = FileSystemReader(state).read_metadata()
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    formats = type(content.state_dict_metadata["model.norm.weight"].properties.__getstate__()[3])
    pickler.dispatch_table = copyreg.dispatch_table | {formats: lambda member: (getattr, (formats, member.name))}
    pickler.dump(content)
    (state / ".metadata").write_bytes(file.getvalue())
    assert b"getattr" in file.getvalue()
    assert StateReader(state).read_metadata().state_dict_metadata == content.state_dict_metadata


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(Metadata)])
def test_a_damaged_file_is_reported(state: Path, content: bytes) -> None:
    (state / ".metadata").write_bytes(content)
    with pytest.raises(DataError, match=r"\.metadata: .*use another checkpoint"):
        StateReader(state)


def test_a_missing_file_is_reported(state: Path) -> None:
    (state / ".metadata").unlink()
    with pytest.raises(DataError, match=r"\.metadata: cannot be read \(FileNotFoundError\)"):
        StateReader(state)


def test_a_tensor_that_names_code_is_refused(state: Path, tmp_path: Path) -> None:
    """What the metadata calls a tensor may be any pickle."""
    made = tmp_path / "made"
    weights = {"weight": torch.zeros(2)}
    shutil.rmtree(state)
    save(weights, checkpoint_id=state, no_dist=True)
    torch.save(Runs(made), state / "more.distcp")
    content = FileSystemReader(state).read_metadata()
    (info,) = content.storage_data.values()
    info.relative_path, info.length = "more.distcp", (state / "more.distcp").stat().st_size
    (state / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"state: names posix\.system"):
        load_state(state, weights, no_dist=True)
    assert not made.exists()
