"""`gm-train ckpt list | verify | reshard`: list, check or convert checkpoints."""

import argparse
import sys
from pathlib import Path

_EXAMPLES = {
    "list": "  gm-train ckpt list runs/demo",
    "verify": """\
  gm-train ckpt verify runs/demo           all checkpoints of the run
  gm-train ckpt verify runs/demo/checkpoints/step-00001600""",
    "reshard": """\
  gm-train ckpt reshard runs/demo          the newest checkpoint of the run
  gm-train ckpt reshard runs/demo/checkpoints/step-00001600""",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `ckpt` and its actions; each sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "ckpt",
        help="list, check or convert checkpoints",
        description="List, check or convert the checkpoints of a run.",
        epilog="\n".join(["examples:", *_EXAMPLES.values()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _add(actions, "list", "list the checkpoints of a run, oldest first")
    listing.add_argument("path", type=Path, metavar="RUN", help="run directory")
    listing.set_defaults(run=run_list)
    checking = _add(actions, "verify", "read every file and compare its hash with the committed one")
    checking.add_argument("path", type=Path, metavar="RUN|CHECKPOINT", help="one checkpoint, or all of a run")
    checking.set_defaults(run=run_verify)
    converting = _add(
        actions,
        "reshard",
        "convert a ZeRO checkpoint so that any strategy and number of ranks can resume from it",
        "Replace a ZeRO checkpoint by one that stores the state by parameter name. Every strategy can "
        "resume from that, on any number of ranks. It remains the same checkpoint of the same run.",
    )
    converting.add_argument(
        "path", type=Path, metavar="RUN|CHECKPOINT", help="a checkpoint, or a run for its newest one"
    )
    converting.set_defaults(run=run_reshard)


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, description: str = ""
) -> argparse.ArgumentParser:
    """Add an action with its help, its description (by default the same sentence) and its examples."""
    return actions.add_parser(
        name,
        help=text,
        description=description or f"{text[0].upper()}{text[1:]}.",
        epilog=f"examples:\n{_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_list(arguments: argparse.Namespace) -> int:
    """Run `gm-train ckpt list`; return the exit code."""
    from gm_train.checkpoint.find import Checkpoint

    for path in _directories(arguments.path):
        checkpoint = Checkpoint.read(path)
        val = "-" if checkpoint.val_loss is None else f"{checkpoint.val_loss:.4f}"
        ranks = f"{checkpoint.n_ranks} rank{'s' if checkpoint.n_ranks > 1 else ''}"
        size = f"{checkpoint.n_bytes / 1e6:,.1f} MB"
        print(f"{path.name}  val_loss {val:>8}  {size:>12}  {checkpoint.form}, written by {ranks}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Run `gm-train ckpt verify`; return the exit code."""
    from data_shards.errors import DataError
    from gm_train.checkpoint.find import Checkpoint

    n_damaged = 0
    for path in _directories(arguments.path):
        try:
            damage = Checkpoint.read(path).damage()
        except DataError as error:
            damage = str(error)
        n_damaged += damage is not None
        print(f"{path}: {damage or 'whole'}", flush=True)
    if n_damaged:
        print(f"gm-train: error: {n_damaged} not whole: do not use them (`fit` skips them)", file=sys.stderr)
    return 1 if n_damaged else 0


def run_reshard(arguments: argparse.Namespace) -> int:
    """Run `gm-train ckpt reshard`; return the exit code."""
    from data_shards.errors import DataError
    from gm_train.checkpoint.find import COMMIT, no_checkpoint, open_checkpoint, put_back
    from gm_train.run.lock import locked
    from gm_train.strategies.choose import refuse_without_deepspeed

    path: Path = arguments.path
    directory = path.parent.parent if path.parent.name == "checkpoints" else path
    if not (directory / "checkpoints").is_dir():
        if (path / COMMIT).is_file():
            raise DataError(f"{path}: is not in a run: checkpoints are converted as RUN/checkpoints/step-…")
        raise no_checkpoint(path)
    refuse_without_deepspeed("this conversion")
    from gm_train.strategies.reshard_zero import reshard

    with locked(directory) as lock:
        put_back(directory / "checkpoints")
        checkpoint = open_checkpoint(path)
        done = reshard(checkpoint, lock)
    what = "is by name already" if done is checkpoint else f"{checkpoint.form} of {checkpoint.n_ranks} ranks -> by name"
    print(f"{done.path}: {what}; any strategy can resume from it, on any number of ranks")
    return 0


def _directories(path: Path) -> list[Path]:
    """Return the checkpoint itself, or the checkpoints of a run by step."""
    from gm_train.checkpoint.find import COMMIT, checkpoint_directories, no_checkpoint

    if (path / COMMIT).is_file():
        return [path]
    directories = checkpoint_directories(path / "checkpoints")
    if not directories:
        raise no_checkpoint(path)
    return directories
