"""Compiled and checkpointed blocks compute the same numbers, and their parameters keep their names."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gm_train.config.schema import TrainerConfig
from gm_train.model.compile import prepare_blocks
from gm_train.model.genemamba import GeneMamba
from tests.support.small_models import pack, random_cells, random_model, relative_error, small_config

CELLS = [[[7, 5], [11]], [[9, 3], [4, 4]]]  # two batches of one shape, with boundaries at different places


def trained(model: GeneMamba, lengths: list[list[int]]) -> tuple[list[Tensor], int]:
    """States and all gradients, and the number of bytes kept for the backward pass."""
    input_ids, segment = pack([random_cells(row, 1) for row in lengths], tail=13 - max(map(sum, lengths)))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model(input_ids, segment)
    torch.manual_seed(0)
    (states * torch.randn_like(states)).sum().backward()
    return [states.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], sum(kept.values())


@pytest.mark.parametrize(
    "variant", [{}, {"aggregation": "head_gate"}, {"arch": "mamba"}, {"arch": "transformer", "n_heads": 3}]
)
def test_checkpointed_blocks_compute_the_same_and_keep_less(variant: dict[str, object]) -> None:
    model = random_model(small_config(n_layers=6, **variant), seed=0)
    names = list(model.state_dict())
    expected, whole = trained(model, CELLS[0])
    prepare_blocks(model, TrainerConfig(activation_checkpointing=True))
    found, less = trained(model, CELLS[0])
    assert list(model.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert less < whole / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "checkpointed"),
    [
        ({}, False),
        ({"aggregation": "head_gate", "norm": "pre"}, True),
        ({"arch": "transformer", "n_heads": 3}, False),
    ],
)
def test_compiled_blocks_compute_the_same(variant: dict[str, object], checkpointed: bool) -> None:
    """With the compiler that training uses; three blocks and two batches of one shape share the compiled code."""
    model = random_model(small_config(n_layers=3, **variant), seed=0)
    names = list(model.state_dict())
    expected = [trained(model, lengths)[0] for lengths in CELLS]
    torch._dynamo.reset()
    prepare_blocks(model, TrainerConfig(compile=True, activation_checkpointing=checkpointed))
    assert list(model.state_dict()) == names
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [trained(model, lengths)[0] for lengths in CELLS]
    for pair in zip(found, expected, strict=True):
        assert all(relative_error(a, b) < 1e-9 for a, b in zip(*pair, strict=True))


def test_blocks_are_compiled_by_default_only_on_gpus_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(small_config(), seed=0)
    plain = [block.forward for block in model.stack.layers]
    prepare_blocks(model, TrainerConfig())
    assert [block.forward for block in model.stack.layers] == plain
    ran: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: lambda *args: ran.append("compiled"))
    for block in model.stack.layers:
        block.kernels_on = ("cuda",)
    prepare_blocks(model, TrainerConfig(compile=False))
    assert [block.forward for block in model.stack.layers] == plain
    prepare_blocks(model, TrainerConfig())
    trained(model, CELLS[0])  # on the CPU
    assert ran == []
    model.stack.layers[0].forward(SimpleNamespace(device=torch.device("cuda", 0)))
    assert ran == ["compiled"]


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@torch._dynamo.config.patch(optimize_ddp=True)
def test_a_block_of_real_size_stays_whole_under_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights fill more than the first bucket of gradients, at which the compiler would cut it."""
    compile_, compiled = torch.compile, []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: compile_(forward, backend=backend, dynamic=dynamic))
    model = random_model(small_config(d_model=512, head_dim=64, n_layers=2), seed=0, dtype=torch.float32)
    model.output.requires_grad_(False)
    torch._dynamo.reset()
    prepare_blocks(model, TrainerConfig(compile=True))
    input_ids, segment = pack([random_cells([7, 5], 1)], tail=1)
    DistributedDataParallel(model)(input_ids, segment).sum().backward()
    assert len(compiled) == 1
    assert all(p.grad is not None for p in model.stack.parameters())
