"""Plan a run for the device of this rank."""

import torch

from gm_train.config.schema import Config
from gm_train.model.kernels.scan_kernels import package_devices, scan_sizes
from gm_train.plan.devices import Device
from gm_train.plan.make_plan import Plan, make_plan
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import device_memory


def plan_here(config: Config, ranks: Ranks) -> Plan:
    """Plan a run of these ranks for the memory that this one has; the speed is left out.

    Args:
        config: checked; it is not changed.
        ranks: this process among the others.

    Raises:
        ConfigError: a step cannot be divided among the ranks.
        DataError: the model cannot be planned, or its strategy needs a package that is not installed.
    """
    device = ranks.device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    by_package = device.type in package_devices(config.model.kernel, scan_sizes(config.model))
    here = Device(name, {}, 0.0, device_memory(ranks), "this machine", on_gpu=by_package)
    return make_plan(config, ranks.n_nodes, ranks.local_size, here)
