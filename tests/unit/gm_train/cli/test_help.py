"""Every command explains itself: its help has examples that the parser accepts."""

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from gm_train.cli.main import build_parser


def tree(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser, and those of all its commands and their commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from tree(command)


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The command lines under `example:` or `examples:`, without a remark that stands behind some spaces."""
    text = parser.format_help().replace("\\\n", " ")
    _, found, below = re.sub(r"\nexamples?:\n", "\nexamples:\n", text).partition("\nexamples:\n")
    if not found:
        return []
    lines = [re.sub(r"(\S)\s{3,}.*", r"\1", re.sub(r" {5,}(--|gm-train)", r" \1", line)) for line in below.splitlines()]
    return [line[line.index("gm-train") :] for line in lines if re.match(r"  (\S.* )?gm-train ", line)]


PARSERS = {parser.prog: parser for parser in tree(build_parser())}


def test_the_whole_tree_is_walked() -> None:
    commands = {"gm-train", "gm-train data", "gm-train data shards", "gm-train fit", "gm-train ckpt reshard"}
    assert commands < set(PARSERS)
    assert len(PARSERS) > 15


@pytest.mark.parametrize("prog", PARSERS)
def test_the_help_has_examples_that_parse(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = examples(PARSERS[prog])
    assert any(line.startswith(prog) for line in lines), f"no example of {prog} in its help"
    for line in lines:
        try:
            build_parser().parse_args(shlex.split(line)[1:])
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ([], "COMMAND (one of data, fit,"),
        (["data"], "COMMAND (one of simulate, medians, shards, import,"),
        (["ckpt"], "ACTION (one of list, verify, reshard)"),
        (["bench"], "WHAT (one of model, loader, prepare, plan, gpu)"),
    ],
)
def test_a_missing_command_lists_the_commands(
    words: list[str], listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args(words)
    assert left.value.code == 2
    assert f"the following arguments are required: {listed}" in capsys.readouterr().err


def test_an_example_that_does_not_parse_would_be_found() -> None:
    parser = argparse.ArgumentParser(
        prog="gm-train fit",
        epilog="examples:\n  gm-train fit a.yaml --nonsense     remark\n  srun x \\\n      gm-train doctor   one\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    assert examples(parser) == ["gm-train fit a.yaml --nonsense", "gm-train doctor"]
    assert examples(argparse.ArgumentParser(prog="gm-train fit")) == []
