"""`gm-train data`: the commands end to end, their exit codes and messages."""

import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import scipy.sparse as sp

from data_shards.medians.medians_file import Medians
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import Manifest
from gm_train.cli.main import main
from tests.conftest import Atlas
from tests.support.count_files import draw_counts, write_counts


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def test_simulated_atlas_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas, medians, store = tmp_path / "atlas.h5ad", tmp_path / "m.zarr", tmp_path / "s.zarr"
    assert run("simulate", "--out", atlas, "--cells", 120, "--genes", 100, "--cell-types", 3) == 0
    assert run("medians", atlas, "--out", medians) == 0
    assert run("shards", atlas, "--medians", medians, "--out", store, "--top-k", 64, "--dither") == 0
    manifest = Manifest.load(store)
    assert (manifest.n_cells, manifest.top_k, manifest.dither) == (120, 64, True)
    assert run("inspect", store) == 0
    printed = capsys.readouterr().out
    assert manifest.hash in printed
    assert Medians.load(medians).hash == manifest.medians_file_hash
    assert manifest.medians_file_hash in printed
    assert run("verify", store) == 0
    (store / "atlas" / "tokens" / "c" / "0").unlink()
    capsys.readouterr()
    assert run("verify", store) == 1
    assert "atlas/tokens/c/0: is missing" in capsys.readouterr().out


def test_pbmc_of_scanpy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.find_spec("scanpy")
    if spec is None or spec.origin is None:
        pytest.skip("scanpy is not installed")
    path = Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    reading = ["--raw", "--counts-from", "log1p"]
    assert run("medians", path, *reading, "--out", tmp_path / "m.zarr") == 0
    assert run("shards", path, *reading, "--medians", tmp_path / "m.zarr", "--out", tmp_path / "s.zarr") == 0
    printed = capsys.readouterr().out
    assert "700 cells kept, 0 filtered, 0 without a token left out; 174,400 tokens" in printed
    assert Manifest.load(tmp_path / "s.zarr").datasets[0].count_options.counts_from == "log1p"
    # Its X is scaled: without the options, the file is refused, and no output is left behind.
    assert run("medians", path, "--out", tmp_path / "x.zarr") == 1
    assert "is negative: counts are in another matrix: try --layer or --raw" in capsys.readouterr().err
    assert sorted(found.name for found in tmp_path.iterdir()) == ["m.zarr", "s.zarr"]


def test_errors_leave_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = draw_counts(5, 4).toarray()
    counts[2, 1] = 0.5
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(counts))
    assert run("medians", path, "--out", tmp_path / "m.zarr") == 1
    errors = capsys.readouterr().err
    assert "a.h5ad: cell 2, gene g0001: 0.5 is not a whole count" in errors
    assert "Traceback" not in errors
    assert run("medians", path, "--out", tmp_path / "m.zarr", "--allow-non-integer") == 0
    assert run("medians", path, "--out", tmp_path / "m.zarr", "--allow-non-integer") == 1
    assert "m.zarr: exists already" in capsys.readouterr().err
    both = ["--counts-from", "log1p", "--allow-non-integer"]
    assert run("medians", path, "--out", tmp_path / "n.zarr", *both) == 2
    assert "leave out --allow-non-integer" in capsys.readouterr().err
    assert run("simulate", "--out", tmp_path / "atlas.h5", "--cells", 10) == 2
    assert "name it atlas.h5ad" in capsys.readouterr().err
    assert run("inspect", tmp_path / "none.zarr") == 1
    assert run("verify", tmp_path / "m.zarr") == 1


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("medians",),
        ("medians", "a.h5ad"),
        ("shards", "a.h5ad", "--out", "s.zarr"),
        ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--top-k", "0"),
        ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--validation", "1.5"),
        ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--workers", "2", "--dask", "tcp://head:8786"),
        ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--split-by", "batch"),
        ("medians", "a.h5ad", "--out", "m.zarr", "--counts-from", "sqrt"),
        ("medians", "a.h5ad", "--out", "m.zarr", "--workers", "2", "--dask", "tcp://head:8786"),
        ("simulate", "--out", "a.h5ad", "--cells", "many"),
    ],
)
def test_wrong_usage_leaves_with_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("simulate", "--out", "a.h5ad", "--cells", "0"), "--cells 0: must be at least 1"),
        (("simulate", "--out", "a.h5ad", "--compression", "zip"), "--compression 'zip': must be one of"),
        (
            ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--validation", "1"),
            "leave no cells to train",
        ),
        (
            ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--min-genes", "-4"),
            "--min-genes -4: must be",
        ),
        (
            ("shards", "a.h5ad", "--medians", "m.zarr", "--out", "s.zarr", "--min-counts", "nan"),
            "--min-counts nan: must",
        ),
        (("inspect", "s.zarr", "--plot", "s.pdf"), "--plot s.pdf: only PNG is supported: name it .png"),
    ],
)
def test_impossible_options_leave_with_2(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mistaken", [False, True])
@pytest.mark.usefixtures("usual_ctrl_c")
def test_an_interrupt_that_is_lost_while_a_command_runs_ends_it(
    mistaken: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Callbacks of LLVM can swallow KeyboardInterrupt; here no workers run yet."""

    def find_damage(store: str) -> list[str]:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if mistaken:
            raise SystemError("a result with an exception set")
        return []

    monkeypatch.setattr("data_shards.inspect.verify.find_damage", find_damage)
    assert run("verify", "s.zarr") == 1
    assert capsys.readouterr().err == "gm-train: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"gm-train {importlib.metadata.version('gm-train')}\n"


def test_paths_lead_through_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorStore refuses paths with `..`; a link must be resolved before its `..`."""
    here, far = tmp_path / "here", tmp_path / "disk" / "far"
    for folder in (here, far):
        folder.mkdir(parents=True)
    (here / "link").symlink_to(far)
    write_counts(tmp_path / "a.h5ad", draw_counts(20, 10))
    monkeypatch.chdir(here)
    assert run("medians", "../a.h5ad", "--out", "../m.zarr") == 0
    assert run("shards", "../a.h5ad", "--medians", "../m.zarr", "--out", "link/../s.zarr") == 0
    assert (tmp_path / "disk/s.zarr").is_dir()
    assert run("verify", "../disk/s.zarr") == 0
    assert run("inspect", here / "../disk/s.zarr", "--plot", "new/s.png") == 0
    assert (here / "new/s.png").stat().st_size > 10_000
    assert len(StoreReader("link/../s.zarr").read(range(20))) == 20


@pytest.mark.parametrize("command", ["simulate", "medians", "shards", "inspect", "verify"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    assert f"example:\n  gm-train data {command}" in capsys.readouterr().out


def test_every_option_of_shards_reaches_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    obs = {"donor_id": ["p", "q", "r", "s"] * 5, "is_primary_data": [True] * 18 + [False] * 2, "other": ["o"] * 20}
    genes = ["MT-A", *[f"g{i}" for i in range(9)]]
    one, two = (
        write_counts(tmp_path / f"{name}.h5ad", draw_counts(20, 10, i), genes, obs) for i, name in enumerate(("a", "b"))
    )
    deny = tmp_path / "deny.txt"
    deny.write_text("g3\n")
    assert run("medians", one, two, "--out", tmp_path / "m.zarr") == 0
    options = ["--max-mito", 0.9, "--where", "is_primary_data", "--min-genes", 1, "--min-counts", 2]
    shared = ["--medians", tmp_path / "m.zarr", "--out", tmp_path / "s.zarr", "--obs-columns", "donor_id,other"]
    assert run("shards", one, *shared, *options, "--deny-genes", deny, "--keep-values", "--split-by", "cell") == 0
    assert run("shards", two, *shared, "--add", "--split-by", "donor", "--validation", 0.5, "--test", 0.2) == 0
    manifest = Manifest.load(tmp_path / "s.zarr")
    first, second = manifest.datasets
    assert first.filters == {"min_genes": 1, "min_counts": 2.0, "max_mito": 0.9, "where": ["is_primary_data"]}
    assert (first.obs_columns, first.split_by, second.split_by) == (["donor_id", "other"], "cell", "donor")
    assert (manifest.values, manifest.n_genes, manifest.options["deny_file"]) == (True, 9, "deny.txt")
    capsys.readouterr()
    assert run("inspect", tmp_path / "s.zarr") == 0
    printed = capsys.readouterr().out
    assert "values       count / total * 10,000 / median of each token" in printed
    assert "--deny-genes deny.txt, SHA-256" in printed
    assert run("verify", tmp_path / "s.zarr") == 0
    assert run("shards", two, *shared, "--add") == 1
    assert "has a data set 'b' already: leave it out, or rename the file" in capsys.readouterr().err


def test_add_extends_medians(tmp_path: Path) -> None:
    one = write_counts(tmp_path / "one.h5ad", draw_counts(8, 5, 1))
    two = write_counts(tmp_path / "two.zarr", draw_counts(8, 5, 2))
    assert run("medians", one, "--out", tmp_path / "m.zarr") == 0
    assert run("medians", two, "--out", tmp_path / "m.zarr", "--add") == 0
    assert run("medians", two, one, "--out", tmp_path / "n.zarr") == 0
    assert Medians.load(tmp_path / "m.zarr").hash == Medians.load(tmp_path / "n.zarr").hash


@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads_is_no_error(atlas: Atlas, buffered: bool) -> None:
    """As in `gm-train data inspect … | head -1`, which closes the pipe before everything is printed."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "gm_train.cli", "data", "inspect", str(atlas.store)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
