"""Make one report over all ranks: collect what each of them found, judge it, and let rank 0 print it.

A check asks every rank (`Checkup.ask`) and then judges the answers. `ask` catches whatever a rank raises, so that no
rank waits for one that failed. Every rank judges the same answers, so all ranks take the same branches.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from data_shards.errors import DataError
from gm_train.ranks.ranks import Ranks

T = TypeVar("T")

_MOST_NODES = 4  # nodes that one line names at most


class Level(Enum):
    """The verdict of a report line; WARN does not change the exit code."""

    OK = "ok"
    WARN = "WARN"
    FAIL = "FAIL"


Problems = list[tuple[Level, str]]


class Lost(Exception):
    """The ranks cannot communicate any more: nothing further can be checked."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The answer of one rank.

    Attributes:
        rank: its global rank.
        node: the name of its node.
        value: what it found.
    """

    rank: int
    node: str
    value: T


def node_name() -> str:
    """Return this node's name; SLURM's name if there is one, because `srun --nodelist` takes that."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def spans(numbers: Sequence[int]) -> str:
    """Format ascending numbers as ranges: 0-3, 8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def where(answers: Sequence[Answer[T]]) -> str:
    """Name the ranks of some answers and their nodes: ranks 0-1 on host-a, rank 2 on host-b."""
    nodes: dict[str, list[int]] = {}
    for one in answers:
        nodes.setdefault(one.node, []).append(one.rank)
    parts = [f"rank{'s' if len(held) > 1 else ''} {spans(held)} on {node}" for node, held in nodes.items()]
    more = len(parts) - _MOST_NODES
    return ", ".join(parts[:_MOST_NODES]) + (f" and {more} more node{'s' if more > 1 else ''}" if more > 0 else "")


def groups(answers: Sequence[Answer[T]], key: Callable[[T], str] = str) -> dict[str, list[Answer[T]]]:
    """Group equal answers, in the order of their first ranks. `key` turns a value into the text to compare."""
    found: dict[str, list[Answer[T]]] = {}
    for one in answers:
        found.setdefault(key(one.value), []).append(one)
    return found


def differences(answers: Sequence[Answer[T]], key: Callable[[T], str] = str) -> str:
    """Format different answers: 2.12 (rank 0 on host-a), 2.13 (rank 1 on host-b); empty if all are the same."""
    found = groups(answers, key)
    return ", ".join(f"{value} ({where(who)})" for value, who in found.items()) if len(found) > 1 else ""


def shown(error: BaseException) -> str:
    """Return an error's message, and its type too unless the message was written for users (DataError)."""
    text = str(error).strip() or "no message"
    return text if isinstance(error, DataError) else f"unexpected {type(error).__name__}: {text.splitlines()[0]}"


def _print(line: str) -> None:
    print(line, flush=True)


class Checkup:
    """The checks of one call of `gm-train doctor`, on this rank.

    Args:
        ranks: this process among those that were started.
        connected: whether the ranks can communicate; otherwise this rank reports only about itself.
        out: prints a line; only rank 0 calls it.

    Attributes:
        counts: number of lines of each level so far.
    """

    def __init__(self, ranks: Ranks, connected: bool = True, out: Callable[[str], None] = _print) -> None:
        self.ranks = ranks
        self.connected = connected
        self.counts = dict.fromkeys(Level, 0)
        self._out = out
        self._node = node_name()

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return self.counts[Level.FAIL] > 0

    def ask(self, name: str, function: Callable[[], T], hint: str = "") -> list[Answer[T]] | None:
        """Call `function` on every rank, and collect the results on every rank.

        Args:
            name: name of the check, for the line of a failure.
            function: examines this rank alone; it must not communicate with other ranks.
            hint: added to the failure if it raised on some ranks only.

        Returns:
            The results in the order of the ranks. None, on every rank, if `function` raised on any; each error was
            reported as a FAIL.

        Raises:
            Lost: a rank has ended.
        """
        value: T | None = None
        problem: str | None = None
        try:
            value = function()
        except Exception as error:
            problem = shown(error)
        answers = self._gather((value, problem))
        wrong = [Answer(one.rank, one.node, one.value[1]) for one in answers if one.value[1] is not None]
        for message, who in groups(wrong).items():
            text = message if len(who) == len(answers) else f"{where(who)}: {message}"
            self.say(Level.FAIL, name, text + (hint if len(wrong) < len(answers) else ""))
        if wrong:
            return None
        return [Answer(one.rank, one.node, one.value[0]) for one in answers]  # type: ignore[arg-type]

    def _gather(self, value: T) -> list[Answer[T]]:
        own = Answer(self.ranks.global_rank, self._node, value)
        if not self.connected:
            return [own]
        try:
            return self.ranks.gather(own)
        except RuntimeError as error:
            raise Lost(str(error).splitlines()[0]) from error

    def conclude(self, name: str, measured: str, problems: Problems) -> None:
        """Report one `ok` line, or a line for each problem.

        Args:
            name: name of the check.
            measured: what was found; it stands in the `ok` line, or before the first problem.
            problems: level and text of each problem.
        """
        if not problems:
            self.say(Level.OK, name, measured)
        for i, (level, problem) in enumerate(problems):
            self.say(level, name, f"{measured}: {problem}" if i == 0 and measured else problem)

    def say(self, level: Level, name: str, text: str) -> None:
        """Count a line of the report; rank 0 prints it.

        Args:
            level: the verdict.
            name: name of the check.
            text: the text; its second and further lines are indented.
        """
        self.counts[level] += 1
        if self.ranks.is_first:
            self._out(f"{level.value:<6}{name:<13}" + text.replace("\n", "\n" + " " * 19))

    def check(self, name: str, function: Callable[[], None]) -> None:
        """Run one check. If it raises, report a FAIL, so that the other checks still run.

        Raises:
            Lost: a rank has ended.
        """
        try:
            function()
        except Lost:
            raise
        except Exception as error:
            self.say(Level.FAIL, name, shown(error))


def amount(n_bytes: float) -> str:
    """Format a number of bytes: 1.6 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    return f"{n_bytes:.3g} {units[0]}" if n_bytes < 999.5 else f"{n_bytes:,.0f} {units[0]}"
