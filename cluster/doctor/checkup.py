"""One report over all ranks: what each of them found, brought together, judged, and printed by rank 0.

A check asks every rank (`Checkup.ask`) and then judges what came back. The asking catches whatever a rank raises, so
that no rank waits for one that failed; the judging sees the same answers on every rank, so that all take the same way.
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

_MOST_NODES = 4  # named in one line


class Level(Enum):
    """The verdict of a line; WARN does not change the exit code."""

    OK = "ok"
    WARN = "WARN"
    FAIL = "FAIL"


Problems = list[tuple[Level, str]]


class Lost(Exception):
    """The ranks cannot talk to each other any more: nothing further can be checked."""


@dataclass(frozen=True)
class Said(Generic[T]):
    """What one rank found.

    Attributes:
        rank: its global rank.
        node: its node.
        value: what it found.
    """

    rank: int
    node: str
    value: T


def node_name() -> str:
    """The name of this node: SLURM's where there is one, so that a message fits what `srun --nodelist` takes."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: 0-3, 8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def where(said: Sequence[Said[T]]) -> str:
    """These ranks and their nodes: ranks 0-1 on host-a, rank 2 on host-b."""
    nodes: dict[str, list[int]] = {}
    for one in said:
        nodes.setdefault(one.node, []).append(one.rank)
    parts = [f"rank{'s' if len(held) > 1 else ''} {spans(held)} on {node}" for node, held in nodes.items()]
    more = len(parts) - _MOST_NODES
    return ", ".join(parts[:_MOST_NODES]) + (f" and {more} more node{'s' if more > 1 else ''}" if more > 0 else "")


def groups(said: Sequence[Said[T]], key: Callable[[T], str] = str) -> dict[str, list[Said[T]]]:
    """The ranks that said the same, in the order of the first of them."""
    found: dict[str, list[Said[T]]] = {}
    for one in said:
        found.setdefault(key(one.value), []).append(one)
    return found


def differences(said: Sequence[Said[T]], key: Callable[[T], str] = str) -> str:
    """Who said what, for a line: 2.12 (rank 0 on host-a), 2.13 (rank 1 on host-b); empty if all said the same."""
    found = groups(said, key)
    return ", ".join(f"{value} ({where(who)})" for value, who in found.items()) if len(found) > 1 else ""


def shown(error: BaseException) -> str:
    """What an error says, with its type if it is none that was written for people."""
    text = str(error).strip() or "no message"
    return text if isinstance(error, DataError) else f"unexpected {type(error).__name__}: {text.splitlines()[0]}"


def _print(line: str) -> None:
    print(line, flush=True)


class Checkup:
    """The checks of one start, on this rank.

    Args:
        ranks: this process among those that were started.
        connected: whether they can talk to each other; otherwise this rank speaks of itself alone.
        out: prints a line; rank 0 alone calls it.

    Attributes:
        counts: lines of each level so far.
    """

    def __init__(self, ranks: Ranks, connected: bool = True, out: Callable[[str], None] = _print) -> None:
        self.ranks = ranks
        self.connected = connected
        self.counts = dict.fromkeys(Level, 0)
        self._out = out
        self._node = node_name()

    @property
    def failed(self) -> bool:
        return self.counts[Level.FAIL] > 0

    def ask(self, name: str, function: Callable[[], T], hint: str = "") -> list[Said[T]] | None:
        """What `function` returns on every rank, in the order of the ranks.

        Args:
            name: of the check, for the line of a failure.
            function: looks at this rank's side of things; takes no part in anything with other ranks.
            hint: added to a failure where other ranks have none.

        Returns:
            None, on every rank, if it raised on any: that has become a FAIL.

        Raises:
            Lost: a rank is gone.
        """
        value: T | None = None
        problem: str | None = None
        try:
            value = function()
        except Exception as error:
            problem = shown(error)
        answers = self._gather((value, problem))
        wrong = [Said(one.rank, one.node, one.value[1]) for one in answers if one.value[1] is not None]
        for message, who in groups(wrong).items():
            text = message if len(who) == len(answers) else f"{where(who)}: {message}"
            self.say(Level.FAIL, name, text + (hint if len(wrong) < len(answers) else ""))
        if wrong:
            return None
        return [Said(one.rank, one.node, one.value[0]) for one in answers]  # type: ignore[arg-type]

    def _gather(self, value: T) -> list[Said[T]]:
        own = Said(self.ranks.global_rank, self._node, value)
        if not self.connected:
            return [own]
        try:
            return self.ranks.gather(own)
        except RuntimeError as error:
            raise Lost(str(error).splitlines()[0]) from error

    def conclude(self, name: str, measured: str, problems: Problems) -> None:
        """One `ok` line, or a line for each problem, the first with what was measured."""
        if not problems:
            self.say(Level.OK, name, measured)
        for i, (level, problem) in enumerate(problems):
            self.say(level, name, f"{measured}: {problem}" if i == 0 and measured else problem)

    def say(self, level: Level, name: str, text: str) -> None:
        """Count a line; rank 0 prints it. Further lines of the text are indented below it."""
        self.counts[level] += 1
        if self.ranks.is_first:
            self._out(f"{level.value:<6}{name:<13}" + text.replace("\n", "\n" + " " * 19))

    def check(self, name: str, function: Callable[[], None]) -> None:
        """Run one check; if it raises, that is a FAIL, and the others go on.

        Raises:
            Lost: a rank is gone.
        """
        try:
            function()
        except Lost:
            raise
        except Exception as error:
            self.say(Level.FAIL, name, shown(error))


def amount(n_bytes: float) -> str:
    """Bytes for people: 1.6 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    return f"{n_bytes:.3g} {units[0]}" if n_bytes < 999.5 else f"{n_bytes:,.0f} {units[0]}"
