"""`gm-train bench gpu`: prove and measure everything on a GPU."""

import argparse
from pathlib import Path

_GPU_EPILOG = """\
examples:
  gm-train bench gpu                                 everything, in nine minutes, on a GPU
  gm-train bench gpu --parts machine,parity --minutes 2
  gm-train bench gpu --rehearse --minutes 30         on a CPU: does every part run?

Results: gpu.json, gpu.md and gpu.png in --out, and the logs of all parts in the folder parts. Simulated cells are kept
in the folder cells. The exit code is 1 if a part failed, was stopped at its limit, found a problem or had no time.
`make gpu` runs this on a machine without internet, with the packages of a folder of wheels.
"""


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench gpu`; it sets `run`, which returns the exit code."""
    gpu = kinds.add_parser(
        "gpu",
        help="prove and measure everything on a GPU, in minutes",
        description="Run every part of gm-train that needs a GPU, with simulated cells, and write a page.\n"
        "Each part has a process and a time limit of its own; what is known is written after each.",
        epilog=_GPU_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = gpu.add_argument
    add("--rehearse", action="store_true", help="run all parts at tiny sizes on the CPU; says nothing about a GPU")
    add("--minutes", type=float, default=9.0, metavar="N", help="time for all parts together (%(default)g)")
    add(
        "--parts",
        type=_names,
        metavar="LIST",
        help="any of machine,cells,parity,losses,resume,race,ladder,profile,roofline,commands (all)",
    )
    add("--out", type=Path, default=Path("runs/bench-gpu"), metavar="DIR", help="folder for the results (%(default)s)")
    gpu.set_defaults(run=run)


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train bench gpu`; return the exit code."""
    import sys
    from dataclasses import replace

    from gm_train.bench.gpu.bench_gpu import run_bench_gpu
    from gm_train.bench.gpu.gpu_plan import GpuPlan

    # Parts run in processes of their own, perhaps in another folder.
    out = arguments.out.absolute()
    device = "cpu" if arguments.rehearse else "cuda"
    plan = GpuPlan(out, device, arguments.minutes, asked=tuple(sys.argv[1:]))
    if arguments.parts is not None:
        plan = replace(plan, names=arguments.parts)
    written, good = run_bench_gpu(plan)
    print(next(path for path in written if path.suffix == ".md").read_text())
    print("written: " + ", ".join(map(str, written)))
    return 0 if good else 1
