"""`gm-train bench`."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  gm-train bench model --quick                       two minutes on a CPU: does it run, and roughly how fast
  gm-train bench model configs/genemamba-66m.yaml --lengths 1024,2048 --out runs/bench-66m
  gm-train bench model --store gut.zarr --lengths natural --parts race,ladder
  gm-train bench model --gpu-report                  everything at the published size, on a GPU

Cells are simulated at the first use, into OUT/cells, unless --store names a token store. Writes bench.json, bench.md
and bench.png into --out.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("bench", help="compare speeds and memory on this machine, in one run")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    model = kinds.add_parser(
        "model",
        help="training steps of the model beside the published layer and a transformer",
        description="Contenders side by side, one process each, in alternation: throughput, memory, rooflines.",
        epilog=_EPILOG,
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
    add("--store", type=Path, metavar="STORE.zarr", help="your cells instead of simulated ones")
    add("--pathways", type=Path, metavar="GMT", help="gene sets: train L_pathway, too")
    add("--out", type=Path, default=Path("runs/bench-model"), metavar="DIR", help="results (%(default)s)")
    model.set_defaults(run=run)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _lengths(text: str) -> tuple[int | None, ...]:
    try:
        return tuple(dict.fromkeys(None if word == "natural" else int(word) for word in _words(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers of genes, or natural, with commas") from None


def run(arguments: argparse.Namespace) -> int:
    # Late: importing torch takes seconds, `--help` should not.
    import sys
    from dataclasses import replace

    from data_shards.errors import DataError
    from gm_train.settings import ConfigError, load_config

    if arguments.quick and arguments.gpu_report:
        raise ConfigError(["--quick and --gpu-report: choose one"])
    for path in (arguments.store, arguments.pathways):
        if path is not None and not path.exists():
            raise DataError(f"{path}: there is no such file")

    import torch

    from gm_train.bench import plan as plans
    from gm_train.bench.run import run as run_plan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_file = any("=" not in word for word in arguments.config)
    sizes: tuple[str, ...] = ()
    if arguments.gpu_report:
        sizes = plans.GPU_SIZES
    elif not has_file and device == "cpu":
        sizes = plans.QUICK_SIZES if arguments.quick else plans.CPU_SIZES
    # The cells are those of --store, and so must the gene sets be: what a file says of both is for `fit`.
    cells = [f"data.store={arguments.store or 'simulated'}", f"objective.pathways={arguments.pathways or ''}"]
    words = [*sizes, *arguments.config, *cells]
    plan = plans.Plan(load_config(words), device=device)
    if arguments.quick:
        plan = plans.quick(plan)
    if arguments.gpu_report:
        plan = plans.gpu_report(plan)
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
    changes = {name: value for name, value in given.items() if value is not None}
    plan = replace(plan, out=arguments.out, asked=tuple(sys.argv[1:]), **changes)
    written = run_plan(plan)
    print((arguments.out / "bench.md").read_text())
    print("written: " + ", ".join(map(str, written)))
    return 0
