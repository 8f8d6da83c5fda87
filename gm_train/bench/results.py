"""Shared by all benchmarks: progress lines, facts about the run, and result files."""

import datetime
import json
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_shards.files.atomic import replace_file
from data_shards.workers.proc import processor_name
from data_shards.workers.progress import Progress
from gm_train.bench.measure.turns import Say
from gm_train.run.provenance import git_revision, packages


@contextmanager
def bench_progress() -> Iterator[Say]:
    """Show the current work and the time so far in one line; without a terminal, print a line now and then."""
    with Progress(bar_format="{desc}  [{elapsed}]", mininterval=0, miniters=1, at_once=True) as line:

        def say(text: str) -> None:
            line.set_description_str(text, refresh=False)
            line.update()

        yield say


def made_with(asked: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return date, command, processor and versions, for the head of a report.

    Args:
        asked: the command line after `gm-train`.
        names: packages to list; those that are not installed are skipped.
    """
    installed = packages()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["gm-train", *asked]),
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in names if name in installed},
        "cpu": processor_name(),
    }


def write_results(
    out: Path, results: dict[str, Any], render: Callable[[dict[str, Any]], str], name: str = "bench"
) -> list[Path]:
    """Write `bench.json` and `bench.md`.

    Args:
        out: existing folder.
        results: plain values, as JSON takes them.
        render: makes the Markdown.
        name: of both files, before the dot.

    Returns:
        The paths of both files.
    """
    paths = [out / f"{name}.json", out / f"{name}.md"]
    replace_file(paths[0], json.dumps(results, indent=1) + "\n")
    replace_file(paths[1], render(results))
    return paths
