"""`gm-train plan`: plan a run on paper."""

import argparse
import logging

_EPILOG = """\
examples:
  gm-train plan configs/genemamba-66m.yaml cluster.nodes=8 --device h100
  gm-train plan configs/genemamba-66m.yaml configs/cluster/h100-infiniband.yaml trainer.activation_checkpointing=true
  gm-train plan configs/demo.yaml trainer.devices=1 --measured

Ranks are those of `gm-train launch`: cluster.nodes with cluster.gpus_per_node each; or trainer.devices, if that is set.
Without --measured, the speed is modelled from a GPU's data sheet: of --device, else cluster.gpu_type, else h100. The
memory of a GPU is that of --device, else cluster.gpu_memory_gb, else what cluster.gpu_type says.
Exit code 1 if a rank's memory is too small by more than the plan's error. More: docs/plan.md.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `plan`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "plan",
        help="plan a run on paper: memory, speed, hours",
        description="Plan memory, speed, hours and checkpoints of a run.\nNothing is trained or written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", nargs="+", metavar="CONFIG.yaml|key=value", help="configuration of the run, as for `gm-train fit`"
    )
    parser.add_argument("--device", metavar="NAME", help="GPU of a rank: a100, h100 or h200")
    parser.add_argument(
        "--share", type=float, metavar="SHARE", help="assumed share of the roofline that a step reaches, 0 … 1"
    )
    parser.add_argument(
        "--measured", action="store_true", help="take a few steps on this machine, and plan for its device"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train plan`; return the exit code."""
    from data_shards.errors import OptionError
    from gm_train.config.load import load_config

    config = load_config(*arguments.config)
    if arguments.measured and (arguments.device or arguments.share):
        raise OptionError("--measured plans for this machine's device: leave --device and --share out")
    if arguments.share is not None and not 0 < arguments.share <= 1:
        raise OptionError(f"--share {arguments.share:g}: must lie in 0 … 1")
    # Imported after the check of the configuration, because importing torch takes seconds.
    from cluster.launch_problems import ranks_per_node
    from gm_train.checkpoint.first_start import fix_rows_of_run
    from gm_train.config.check import ConfigError, rank_problems
    from gm_train.plan.advice import refuse_too_large, tight
    from gm_train.plan.devices import ASSUMED_SHARE, DEVICES, Device, device_of_cluster
    from gm_train.plan.make_plan import make_plan
    from gm_train.plan.render_plan import render_plan
    from gm_train.ranks.ranks import Ranks

    if arguments.device and arguments.device not in DEVICES:
        raise OptionError(f"--device {arguments.device}: expected one of {', '.join(DEVICES)}; --measured plans others")
    cluster, trainer = config.cluster, config.trainer
    of_launch = trainer.devices is None
    nodes = cluster.nodes if of_launch else trainer.num_nodes or 1
    per_node = ranks_per_node(config) if of_launch else trainer.devices or 1
    if problems := rank_problems(config, nodes * per_node):
        raise ConfigError(problems)
    chosen_step = fix_rows_of_run(config, nodes * per_node)
    measured = None
    device: Device | None = None
    if arguments.measured:
        from gm_train.bench.model.measured_step import measure_step
        from gm_train.plan.store_facts import read_store_facts

        vocabulary = read_store_facts(config).vocabulary_size
        measured = measure_step(config, vocabulary, Ranks(0, nodes * per_node, 0, per_node))
    elif arguments.device or (of_launch and cluster.gpus_per_node):
        device = DEVICES[arguments.device] if arguments.device else device_of_cluster(cluster)
    plan = make_plan(config, nodes, per_node, device, arguments.share or ASSUMED_SHARE, measured)
    print(render_plan(plan) + (f"\n\n{chosen_step}" if chosen_step else ""), flush=True)
    refuse_too_large(plan)
    if (warning := tight(plan)) is not None:
        logging.getLogger(__name__).warning(warning)
    return 0
