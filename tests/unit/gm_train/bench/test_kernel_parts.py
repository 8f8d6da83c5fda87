"""The parts of a mixer that kernels compute are timed alone: each launches its own kernels, both ways."""

import importlib.util
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gm_train.bench.model.kernel_parts import kernel_parts
from gm_train.bench.traffic.launch_counter import LaunchCounter
from gm_train.config.schema import ModelConfig
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import make_segments


@pytest.mark.parametrize(("arch", "aggregation"), [("bimamba", "gate"), ("bimamba", "head_gate"), ("mamba", "gate")])
def test_a_part_launches_its_own_kernels(arch: str, aggregation: str) -> None:
    if importlib.util.find_spec("mamba_ssm") is None or importlib.util.find_spec("triton") is None:
        assert "CI" not in os.environ
        pytest.skip("mamba_ssm is not installed: `make setup` does")
    from gm_train.model.kernels.scan_tiles import TILES

    with FakeTensorMode():
        mixer = Mamba2Mixer(ModelConfig(arch=arch, aggregation=aggregation, d_model=32, d_state=16, head_dim=16))
        columns = torch.empty(2, 300, mixer.in_proj.out_features, dtype=torch.bfloat16)
        cells = make_segments(torch.ones(2, 300, dtype=torch.int64), 64, 4).cells[: 4 if arch == "bimamba" else 2]
        counter = LaunchCounter()
        with counter, counter.as_on_a_gpu():
            parts = kernel_parts(mixer, columns, cells)
            launched = {}
            for name, run in parts.items():
                counter.launches.clear()
                run()
                launched[name] = {launch.name for launch in counter.launches if launch.name.endswith("_kernel")}
    assert launched == {
        "convolution": {"_conv_forward_kernel", "_conv_backward_kernel"},
        "scan": {"_steps_forward_kernel", "_steps_backward_kernel", *TILES},
        "gate and norm": {"_gated_norm_forward_kernel", "_gated_norm_backward_kernel"},
    }
