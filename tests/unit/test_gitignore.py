"""The commands of README.md and of the pages leave nothing in the repository that git would offer to commit."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from gm_train.cli.main import build_parser, main
from gm_train.config.schema import RunConfig
from tests.conftest import tiny_words
from tests.unit.gm_train.cli.test_readme import command_lines

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def outputs(line: str) -> list[Path]:
    """What a command line writes, relative to where it runs; of a run, its directory and what lies beside it."""
    arguments = build_parser().parse_args(shlex.split(line, comments=True)[1:])
    written = [value for name in ("out", "output", "plot") if (value := getattr(arguments, name, None)) is not None]
    paths = [Path(path) for path in written]
    if arguments.command == "data":
        paths += [path.with_name(f".{path.name}.work") for path in paths]
        paths += [path.with_suffix(".gmt") for path in paths if path.suffix == ".h5ad"]
    if arguments.command in ("fit", "launch"):
        words = [word for word in arguments.config if word.startswith("run.dir=")]
        run = Path(words[-1].removeprefix("run.dir=") if words else RunConfig().dir)
        paths += [run, run.parent / "mlflow.db", run.parent / "mlartifacts"]
    return paths


def ignored(paths: list[str]) -> set[str]:
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(paths),
        capture_output=True,
        text=True,
    )
    if done.returncode > 1:
        pytest.skip(f"not a git checkout: {done.stderr}")
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_commands_of_a_page_write_is_ignored(page: Path) -> None:
    text = page.read_text()
    # data.md works in a folder of its own.
    folder = Path("trial" if "cd trial" in text else "")
    paths = sorted({f"{folder / path}" for line in command_lines(text) for path in outputs(line)})
    if page.name in ("README.md", "data.md"):
        assert len(paths) >= 5
    # A folder is ignored by a pattern that ends with `/` only if it exists, or something in it is asked for.
    asked = {path: path if Path(path).suffix in (".h5ad", ".gmt", ".png", ".db") else f"{path}/x" for path in paths}
    known = ignored(list(asked.values()))
    assert [path for path in paths if asked[path] not in known and not path.startswith("/")] == []


@pytest.mark.slow
def test_the_first_run_leaves_nothing_that_git_would_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of README.md on fewer cells and steps, in a repository with this .gitignore: also by-products."""
    monkeypatch.chdir(tmp_path)
    if subprocess.run(["git", "init", "-q"], cwd=tmp_path).returncode:
        pytest.skip("git does not work here")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    tiny = [word for word in tiny_words(Path("cells.zarr"), Path("runs/atlas")) if not word.startswith("tracking")]
    for words in (
        ["data", "simulate", "--out", "atlas.h5ad", "--cells", "200", "--genes", "100"],
        ["data", "medians", "atlas.h5ad", "--out", "medians.zarr"],
        [
            "data",
            "shards",
            "atlas.h5ad",
            "--medians",
            "medians.zarr",
            "--out",
            "cells.zarr",
            "--top-k",
            "64",
            "--test",
            "0.1",
        ],
        ["fit", *tiny, "objective.pathways=atlas.gmt", "trainer.max_steps=4"],
        ["eval", "runs/atlas", "atlas.h5ad", "--label", "cell_type", "--max-cells", "80", "--tasks", "probes"],
        ["data", "inspect", "cells.zarr", "--plot", "cells.png"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert status.stdout == "?? .gitignore\n"


def test_sources_are_not_ignored() -> None:
    tracked = ["configs/demo.gmt", "docs/demo-scores.png", "gm_train/run/lock.py", "data_shards/store/manifest.py"]
    assert ignored(["README.md", *tracked]) == set()
