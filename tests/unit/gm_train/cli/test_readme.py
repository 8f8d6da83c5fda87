"""The parser accepts every command line in the README."""

import re
import shlex
from pathlib import Path

import pytest

from gm_train.cli.main import build_parser
from gm_train.config.check import rank_problems
from gm_train.config.load import load_config

README = Path(__file__).parents[4] / "README.md"


def command_lines(text: str) -> list[str]:
    """Return the `gm-train ...` lines of code blocks, fenced or indented, without the prompt."""
    lines, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and re.match(r"\s*(\$ )?(\S*/)?gm-train ", line):
            lines.append(line.strip().removeprefix("$ "))
    return lines


def test_command_lines_of_the_readme_are_parsed() -> None:
    lines = command_lines(README.read_text())
    assert len(lines) >= 5
    refused = []
    for line in lines:
        try:
            build_parser().parse_args(shlex.split(line, comments=True)[1:])
        except SystemExit:
            refused.append(line)
    assert not refused


def test_the_jobs_of_the_readme_can_be_divided_among_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent)
    jobs = [line for line in command_lines(README.read_text()) if line.split()[1] == "launch"]
    assert jobs
    for line in jobs:
        words = [word for word in shlex.split(line, comments=True)[2:] if not word.startswith("--")]
        config = load_config(*words)
        assert rank_problems(config, config.cluster.nodes * config.cluster.gpus_per_node) == []
