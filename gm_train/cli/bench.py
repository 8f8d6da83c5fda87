"""`gm-train bench`: measure speed and memory on this machine."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from gm_train.cli import bench_gpu
from gm_train.cli.bench_plan import add_plan

_EPILOG = """\
examples:
  gm-train bench model --quick
  gm-train bench loader --quick
  gm-train bench prepare --quick
  gm-train bench plan configs/demo.yaml
  gm-train bench gpu --minutes 9
"""

_MODEL_EPILOG = """\
examples:
  gm-train bench model --quick                       about two minutes on a CPU: does it run, and roughly how fast?
  gm-train bench model configs/genemamba-66m.yaml --lengths 1024,2048 --out runs/bench-66m
  gm-train bench model --store gut.zarr --lengths natural --parts race,ladder
  gm-train bench model --traffic                     bytes and launches of a layer on a GPU, counted on any machine

Without --store, the first run simulates cells and keeps them in the folder cells of --out.
Results: bench.json, bench.md and bench.png in --out; of --traffic, traffic.json and traffic.md.
"""


_LOADER_EPILOG = """\
examples:
  gm-train bench loader --quick                      one or two minutes: does it run, and roughly how fast?
  gm-train bench loader --out runs/bench-loader      50,000 simulated cells
  gm-train bench loader --h5ad gut.h5ad --store gut.zarr

Loaders of other packages take part if they are installed: pip install 'gm-train[peers]'.
Results: bench.json and bench.md in --out. The cells, and copies of them for the other loaders, are kept there, too.
"""

_PREPARE_EPILOG = """\
examples:
  gm-train bench prepare --quick                     about two minutes: does it run, and roughly how fast?
  gm-train bench prepare --parts ranking,medians,files --out runs/bench-prepare
  gm-train bench prepare --parts scale --sizes 100000,1000000

While it runs, the part scale needs 10 GB of disk in --out for a million cells; the other parts need 4 GB.
Results: bench.json and bench.md in --out.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench` and its subcommands; each sets `run`, which returns the exit code."""
    text = "measure speed and memory on this machine, beside alternatives"
    parser = subparsers.add_parser(
        "bench",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    model = kinds.add_parser(
        "model",
        help="time training steps, beside the published layer and a transformer",
        description="Measure throughput, memory and rooflines of the model and other contenders.\n"
        "Each contender has its own process, and they take turns.",
        epilog=_MODEL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = model.add_argument
    add(
        "config",
        nargs="*",
        metavar="CONFIG.yaml|key=value",
        help="settings of genemamba, as for `gm-train fit`; --store and --pathways name cells and gene sets",
    )
    add("--quick", action="store_true", help="a small model, few lengths, nothing compiled: about two minutes")
    add(
        "--traffic",
        action="store_true",
        help="only count what a layer of width 512 in bf16 moves and launches, by part, on fake tensors: seconds",
    )
    add(
        "--parts",
        type=_words,
        metavar="LIST",
        help="any of race,ladder,kernels,options,loss-memory,profile (race,ladder,kernels)",
    )
    add(
        "--contenders",
        type=_words,
        metavar="LIST",
        help="any of genemamba,published,transformer,mamba2_transformers (all)",
    )
    add(
        "--lengths",
        type=_lengths,
        metavar="LIST",
        help="genes per cell, or natural for the cells' own lengths (512,1024,2048,4096,8192)",
    )
    add("--tokens-per-step", type=int, metavar="N", help="tokens per training step (8192; --traffic: 49152)")
    add("--steps", type=int, metavar="N", help="timed steps per contender and length, at least 10 (12)")
    add("--warmup", type=int, metavar="N", help="untimed steps before the timed ones (2)")
    add("--threads", type=int, metavar="N", help="number of PyTorch threads (all cores)")
    add(
        "--store",
        type=Path,
        metavar="STORE.zarr",
        help="use this token store, a local folder, instead of simulated cells",
    )
    add("--pathways", type=Path, metavar="GMT", help="file of gene sets (.gmt): include L_pathway in training")
    add(
        "--out", type=Path, default=Path("runs/bench-model"), metavar="DIR", help="folder for the results (%(default)s)"
    )
    model.set_defaults(run=run_bench_model)
    _add_loader(kinds)
    _add_prepare(kinds)
    bench_gpu.add_parser(kinds)


def _add_loader(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    loader = kinds.add_parser(
        "loader",
        help="time the loading of batches, beside other packages' loaders",
        description="Measure cells per second of several loaders on the same cells.\n"
        "Each loader has its own process, and they take turns.",
        epilog=_LOADER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = loader.add_argument
    add("--quick", action="store_true", help="few cells, short turns: one or two minutes")
    add("--parts", type=_words, metavar="LIST", help="any of race,mixing (both)")
    add("--cells", type=int, metavar="N", help="number of cells to simulate (50000)")
    add(
        "--compression", help="compression of the simulated counts: none, lzf or gzip (none, fastest for .h5ad loaders)"
    )
    add(
        "--store",
        type=Path,
        metavar="STORE.zarr",
        help="use this token store, a local folder; without --h5ad, no other loaders take part",
    )
    add(
        "--h5ad",
        type=Path,
        metavar="FILE",
        help="use the counts in this file; with --store: the same cells, in the same order",
    )
    add("--turns", type=int, metavar="N", help="timed turns per loader, at least 10 (12)")
    add("--turn-seconds", type=float, metavar="S", help="minimal length of a turn in seconds (0.5)")
    add(
        "--out",
        type=Path,
        default=Path("runs/bench-loader"),
        metavar="DIR",
        help="folder for the results (%(default)s)",
    )
    loader.set_defaults(run=run_loader)


def _add_prepare(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    prepare = kinds.add_parser(
        "prepare",
        help="time the preparation of data: ranking, medians, files, growing atlases",
        description="Measure the preparation of data: ranking beside alternatives, medians function by function,\n"
        "files beside only reading them, and every step for atlases of growing size.",
        epilog=_PREPARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = prepare.add_argument
    add("--quick", action="store_true", help="few cells: about two minutes")
    add("--parts", type=_words, metavar="LIST", help="any of ranking,medians,files,scale (all)")
    add("--cells", type=int, metavar="N", help="number of cells, in all parts except scale (200000)")
    add("--sizes", type=_sizes, metavar="LIST", help="numbers of cells of the atlases of scale (100000,1000000)")
    add("--repeats", type=int, metavar="N", help="runs of each way to prepare a file (3)")
    add("--workers", type=int, metavar="N", help="number of processes, where a part uses several (2)")
    add(
        "--out",
        type=Path,
        default=Path("runs/bench-prepare"),
        metavar="DIR",
        help="folder for the results (%(default)s)",
    )
    prepare.set_defaults(run=run_prepare)
    add_plan(kinds)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _lengths(text: str) -> tuple[int | None, ...]:
    try:
        return tuple(dict.fromkeys(None if word == "natural" else int(word) for word in _words(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers of genes, or natural, separated by commas"
        ) from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of cells, separated by commas") from None


def run_bench_model(arguments: argparse.Namespace) -> int:
    """Run `gm-train bench model`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    import sys

    from data_shards.errors import DataError
    from gm_train.config.check import ConfigError
    from gm_train.config.load import load_config

    modes = [name for name in ("quick", "traffic") if getattr(arguments, name)]
    if len(modes) > 1:
        raise ConfigError([" and ".join(f"--{name.replace('_', '-')}" for name in modes) + ": choose one"])
    for path in (arguments.store, arguments.pathways):
        if path is not None and not path.exists():
            raise DataError(f"{path}: no such file or folder")

    import torch

    from gm_train.bench.model import model_plan
    from gm_train.bench.model.bench_model import run_bench_model as run_plan
    from gm_train.bench.traffic import traffic_report

    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_file = any("=" not in word for word in arguments.config)
    sizes: tuple[str, ...] = ()
    if arguments.traffic:
        sizes = () if has_file else ("trainer.precision=bf16",)
    elif not has_file and device == "cpu":
        sizes = model_plan.QUICK_SIZES if arguments.quick else model_plan.CPU_SIZES
    # The options --store and --pathways choose cells and gene sets: those in a configuration file are for `fit`.
    cells = [f"data.store={arguments.store or 'simulated'}", f"objective.pathways={arguments.pathways or ''}"]
    # Like the published model, its contenders predict single genes: the objective of a file is for `fit`, too.
    asks = any(word.startswith("objective.language=") for word in arguments.config)
    words = [*sizes, *arguments.config, *cells, *(() if asks else ("objective.language=masked",))]
    if arguments.traffic:
        tokens = traffic_report.TOKENS if arguments.tokens_per_step is None else arguments.tokens_per_step
        written = traffic_report.run_traffic(load_config(*words), tokens, arguments.out, sys.argv[1:])
        return _show(written)
    plan = model_plan.ModelPlan(load_config(*words), device=device)
    if arguments.quick:
        plan = model_plan.quick(plan)
    given = {
        "parts": arguments.parts,
        "names": arguments.contenders,
        "lengths": arguments.lengths,
        "tokens_per_step": arguments.tokens_per_step,
        "steps": arguments.steps,
        "warmup": arguments.warmup,
        "threads": arguments.threads,
        "store": arguments.store,
    }
    return _show(run_plan(_changed(replace(plan, out=arguments.out, asked=tuple(sys.argv[1:])), given)))


def run_loader(arguments: argparse.Namespace) -> int:
    """Run `gm-train bench loader`; return the exit code."""
    import sys

    from data_shards.errors import DataError
    from gm_train.bench.loader import bench_loader

    for path in (arguments.store, arguments.h5ad):
        if path is not None and not path.exists():
            raise DataError(f"{path}: no such file or folder")
    plan = bench_loader.LoaderPlan(
        store=arguments.store, h5ad=arguments.h5ad, out=arguments.out, asked=tuple(sys.argv[1:])
    )
    given = {
        "parts": arguments.parts,
        "n_cells": arguments.cells,
        "compression": arguments.compression,
        "turns": arguments.turns,
        "turn_s": arguments.turn_seconds,
    }
    plan = _changed(bench_loader.quick(plan) if arguments.quick else plan, given)
    return _show(bench_loader.run_bench_loader(plan))


def run_prepare(arguments: argparse.Namespace) -> int:
    """Run `gm-train bench prepare`; return the exit code."""
    import sys

    from gm_train.bench.prepare import bench_prepare

    plan = bench_prepare.PreparePlan(out=arguments.out, asked=tuple(sys.argv[1:]))
    given = {
        "parts": arguments.parts,
        "n_cells": arguments.cells,
        "sizes": arguments.sizes,
        "repeats": arguments.repeats,
        "workers": arguments.workers,
    }
    plan = _changed(bench_prepare.quick(plan) if arguments.quick else plan, given)
    return _show(bench_prepare.run_bench_prepare(plan))


def _changed(plan: Any, given: dict[str, Any]) -> Any:
    """Replace the settings of a plan that the command line gives."""
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def _show(written: list[Path]) -> int:
    print(next(path for path in written if path.suffix == ".md").read_text())
    print("written: " + ", ".join(map(str, written)))
    return 0
