"""The argument parser of all commands: it reports an unknown option with the usage of the command at hand."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose commands report their own unknown options, and that lists the commands if none is given.

    argparse leaves the unknown options of a command to the parser above, which then shows the usage of `gm-train`. For
    commands that take settings, the message says how `--optim.lr 1e-3` is written.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and exit with code 2 if options are left."""
        words = list(sys.argv[1:] if args is None else args)
        parsed, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self._refuse(unknown, words)
        return parsed, []

    def error(self, message: str) -> NoReturn:
        """Exit with code 2; list the commands if one is missing."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and message.endswith(f"required: {action.metavar}"):
                message += f" (one of {', '.join(action.choices)})"
        super().error(message)

    def _refuse(self, unknown: list[str], words: list[str]) -> NoReturn:
        message = f"unrecognized arguments: {' '.join(unknown)}"
        options = [word for word in unknown if word.startswith("-")]
        if options and any(action.dest == "config" for action in self._actions):
            message += "; settings have no dashes: " + ", ".join(_as_setting(option, words) for option in options)
        self.error(message)


def _as_setting(option: str, words: list[str]) -> str:
    """How an option is written as a setting, such as "write optim.lr=1e-3" for `--optim.lr 1e-3`."""
    # Imported late: it needs OmegaConf, which `gm-train --help` does not.
    from gm_train.config.load import DEFAULTS, advice_on_key

    key, equals, value = option.lstrip("-").partition("=")
    after = words[words.index(option) + 1 :]
    if not equals:
        value = after[0] if after and not after[0].startswith("-") else "VALUE"
    same = [name for name in DEFAULTS if name.rsplit(".", 1)[-1] == key.replace("-", "_")]
    name = key if key in DEFAULTS else same[0] if len(same) == 1 else None
    return f"write {name}={value}" if name else f"{key}: {advice_on_key(key)}"
