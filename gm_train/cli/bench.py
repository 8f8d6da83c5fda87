"""`gm-train bench`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

_MODEL_EPILOG = """\
examples:
  gm-train bench model --quick                       two minutes on a CPU: does it run, and roughly how fast
  gm-train bench model configs/genemamba-66m.yaml --lengths 1024,2048 --out runs/bench-66m
  gm-train bench model --store gut.zarr --lengths natural --parts race,ladder
  gm-train bench model --gpu-report                  everything at the published size, on a GPU

Cells are simulated at the first use, into OUT/cells, unless --store names a token store. Writes bench.json, bench.md
and bench.png into --out.
"""


_LOADER_EPILOG = """\
examples:
  gm-train bench loader --quick                      a minute or two: does it run, and roughly how fast
  gm-train bench loader --out runs/bench-loader      50,000 simulated cells
  gm-train bench loader --h5ad gut.h5ad --store gut.zarr

Loaders of others are timed where they are installed: pip install 'gm-train[peers]'. Writes bench.json and bench.md into
--out, and keeps the cells and the copies of them that the loaders want in there, too.
"""

_PREPARE_EPILOG = """\
examples:
  gm-train bench prepare --quick                     two minutes: does it run, and roughly how fast
  gm-train bench prepare --parts ranking,medians,files --out runs/bench-prepare
  gm-train bench prepare --parts scale --sizes 100000,1000000

A million cells need 10 GB of disk in --out while they are there, those of the other parts 4 GB.
Writes bench.json and bench.md into --out.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("bench", help="compare speeds and memory on this machine, in one run")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    model = kinds.add_parser(
        "model",
        help="training steps of the model beside the published layer and a transformer",
        description="Contenders side by side, one process each, in alternation: throughput, memory, rooflines.",
        epilog=_MODEL_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = model.add_argument
    add(
        "config",
        nargs="*",
        metavar="CONFIG.yaml|key=value",
        help="settings of genemamba, as for fit, but for cells and gene sets",
    )
    add("--quick", action="store_true", help="a small model, few lengths, nothing compiled: about two minutes")
    add("--gpu-report", action="store_true", help="all parts at 24 x 512 in bf16, on a GPU")
    add("--parts", type=_words, metavar="LIST", help="race,ladder,kernels (default) and options,loss-memory,profile")
    add("--contenders", type=_words, metavar="LIST", help="of genemamba,published,transformer,mamba2_transformers")
    add("--lengths", type=_lengths, metavar="LIST", help="genes of a cell, or natural (512,1024,2048,4096,8192)")
    add("--tokens-per-step", type=int, metavar="N", help="tokens of the rows of a step (8192)")
    add("--steps", type=int, metavar="N", help="timed steps of each contender at each length, at least 10 (12)")
    add("--warmup", type=int, metavar="N", help="untimed steps before them (2)")
    add("--threads", type=int, metavar="N", help="of PyTorch (all cores)")
    add("--store", type=Path, metavar="STORE.zarr", help="a store of yours, a local folder, instead of simulated cells")
    add("--pathways", type=Path, metavar="GMT", help="gene sets: train L_pathway, too")
    add("--out", type=Path, default=Path("runs/bench-model"), metavar="DIR", help="results (%(default)s)")
    model.set_defaults(run=run_bench_model)
    _add_loader(kinds)
    _add_prepare(kinds)


def _add_loader(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    loader = kinds.add_parser(
        "loader",
        help="loading of batches beside the loaders of others",
        description="Loaders side by side on the same cells, one process each, in alternation: cells a second.",
        epilog=_LOADER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = loader.add_argument
    add("--quick", action="store_true", help="few cells, short turns: a minute or two")
    add("--parts", type=_words, metavar="LIST", help="race,mixing (default: both)")
    add("--cells", type=int, metavar="N", help="cells to simulate (50000)")
    add("--compression", help="of their counts: none (default; loaders that read .h5ad are fastest), lzf or gzip")
    add(
        "--store",
        type=Path,
        metavar="STORE.zarr",
        help="a store of yours, a local folder; alone, without other loaders",
    )
    add("--h5ad", type=Path, metavar="FILE", help="your cells as counts; with --store the same cells in the same order")
    add("--turns", type=int, metavar="N", help="timed turns of each loader, at least 10 (12)")
    add("--turn-seconds", type=float, metavar="S", help="seconds of a turn, at least (0.5)")
    add("--out", type=Path, default=Path("runs/bench-loader"), metavar="DIR", help="results (%(default)s)")
    loader.set_defaults(run=run_loader)


def _add_prepare(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    prepare = kinds.add_parser(
        "prepare",
        help="ranking, medians, shards, and an atlas that grows",
        description="Preparation of data: ranking beside other ways, medians by function, files beside reading them, "
        "and growing atlases through every step.",
        epilog=_PREPARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = prepare.add_argument
    add("--quick", action="store_true", help="few cells: about two minutes")
    add("--parts", type=_words, metavar="LIST", help="ranking,medians,files,scale (default: all)")
    add("--cells", type=int, metavar="N", help="cells of all parts but scale (200000)")
    add("--sizes", type=_sizes, metavar="LIST", help="cells of the atlases of scale (100000,1000000)")
    add("--repeats", type=int, metavar="N", help="runs of each way to prepare a file (3)")
    add("--workers", type=int, metavar="N", help="processes, where there is more than one (2)")
    add("--out", type=Path, default=Path("runs/bench-prepare"), metavar="DIR", help="results (%(default)s)")
    prepare.set_defaults(run=run_prepare)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _lengths(text: str) -> tuple[int | None, ...]:
    try:
        return tuple(dict.fromkeys(None if word == "natural" else int(word) for word in _words(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of genes, or natural, with commas") from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of cells, with commas") from None


def run_bench_model(arguments: argparse.Namespace) -> int:
    # Late: importing torch takes seconds, `--help` should not.
    import sys

    from data_shards.errors import DataError
    from gm_train.config.check import ConfigError
    from gm_train.config.load import load_config

    if arguments.quick and arguments.gpu_report:
        raise ConfigError(["--quick and --gpu-report: choose one"])
    for path in (arguments.store, arguments.pathways):
        if path is not None and not path.exists():
            raise DataError(f"{path}: there is no such file")

    import torch

    from gm_train.bench.model import model_plan
    from gm_train.bench.model.bench_model import run_bench_model as run_plan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_file = any("=" not in word for word in arguments.config)
    sizes: tuple[str, ...] = ()
    if arguments.gpu_report:
        sizes = model_plan.GPU_SIZES
    elif not has_file and device == "cpu":
        sizes = model_plan.QUICK_SIZES if arguments.quick else model_plan.CPU_SIZES
    # The cells are those of --store, and so must the gene sets be: what a file says of both is for `fit`.
    cells = [f"data.store={arguments.store or 'simulated'}", f"objective.pathways={arguments.pathways or ''}"]
    words = [*sizes, *arguments.config, *cells]
    plan = model_plan.ModelPlan(load_config(words), device=device)
    if arguments.quick:
        plan = model_plan.quick(plan)
    if arguments.gpu_report:
        plan = model_plan.gpu_report(plan)
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
    return _show(arguments.out, run_plan(_changed(replace(plan, out=arguments.out, asked=tuple(sys.argv[1:])), given)))


def run_loader(arguments: argparse.Namespace) -> int:
    import sys

    from data_shards.errors import DataError
    from gm_train.bench.loader import bench_loader

    for path in (arguments.store, arguments.h5ad):
        if path is not None and not path.exists():
            raise DataError(f"{path}: there is no such file")
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
    return _show(arguments.out, bench_loader.run_bench_loader(plan))


def run_prepare(arguments: argparse.Namespace) -> int:
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
    return _show(arguments.out, bench_prepare.run_bench_prepare(plan))


def _changed(plan: Any, given: dict[str, Any]) -> Any:
    """A plan with the settings that were given."""
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def _show(out: Path, written: list[Path]) -> int:
    print((out / "bench.md").read_text())
    print("written: " + ", ".join(map(str, written)))
    return 0
