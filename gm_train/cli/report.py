"""`gm-train report`: write a run's report again, or serve it while the run trains."""

import argparse
from pathlib import Path

_PORT = 8008
_EPILOG = f"""\
examples:
  gm-train report runs/demo
  gm-train report runs/demo --live
  gm-train report runs/demo --live --port 0

`fit`, `eval` and `annotate` write RUN/report.html themselves. --live shows a run while it trains: the page in the
browser follows the records, and nothing is written. It is served to this machine alone; from elsewhere, forward the
port: ssh -L {_PORT}:localhost:{_PORT} MACHINE
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `report`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "report",
        help="write a run's report again, or show it while the run trains",
        description="Write RUN/report.html again from the records of a run, or serve it while the run trains.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--live", action="store_true", help="serve the page on 127.0.0.1 and keep it up to date")
    parser.add_argument("--port", type=int, metavar="N", help=f"port of --live; 0: any free one (default: {_PORT})")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train report`; return the exit code."""
    from data_shards.errors import OptionError

    if arguments.port is not None and not arguments.live:
        raise OptionError("--port: only a page that is served needs one: add --live")
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.run.starts import refuse_no_run

    refuse_no_run(arguments.run_dir)
    if arguments.live:
        _serve(arguments.run_dir, _PORT if arguments.port is None else arguments.port)
        return 0
    from gm_train.train.run_report import write_report

    print(f"written: {write_report(arguments.run_dir)}")
    return 0


def _serve(run_dir: Path, port: int) -> None:
    """Serve until Ctrl-C."""
    import os

    from gm_train.train.live_report import LivePage, LiveServer

    os.nice(10)  # the run that trains goes first
    with LiveServer(LivePage(run_dir), port) as server:
        print(f"{run_dir} live at {server.url} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")
