"""A command that runs beside this process, on a share of its threads, with its output in a file."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import DataError
from gm_train.ranks.launch_local import PARENT

#: How long a training may take to save and leave.
_PATIENCE_S = 60.0
_LAST_LINES = 15


class ChildProcess:
    """A Python module that runs as a process.

    Args:
        what: what it does, for messages.
        words: name of the module and its arguments.
        log: file for its output.
        threads: that it may use.
    """

    def __init__(self, what: str, words: Sequence[str], log: Path, threads: int) -> None:
        self._what, self._log, self._asked = what, log, False
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # In a session of its own: Ctrl-C comes to this process, which decides how the others end.
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def has_ended(self) -> bool:
        """Whether it has ended.

        Raises:
            DataError: it failed; the message ends with the last lines of its output.
        """
        code = self._process.poll()
        if code:
            lines = self._log.read_text(errors="replace").replace("\r", "\n").rstrip().splitlines()
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"code {code}"
            raise DataError(
                f"{self._what} failed ({how}); its output is in {self._log}, and ends with:\n"
                + "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])
                + "\nthe same command continues after what is finished"
            )
        return code is not None

    def ask_to_leave(self) -> None:
        """Ask it to save and leave, unless it was asked or has ended."""
        if self._process.poll() is None and not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGTERM)

    def leave(self) -> None:
        """Ask it to save and leave, and wait; kill it if it does not."""
        self.ask_to_leave()
        if self._process.poll() is None:
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
