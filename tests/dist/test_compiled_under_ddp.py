"""A compiled block stays one graph under DDP."""

import os
from pathlib import Path

import pytest

from gm_train.ranks.launch_local import free_port
from tests.support.ddp_graphs import count_graphs
from tests.support.training_runs import CONTEXT


def _call(environment: dict[str, str], answers: object, d_model: int) -> None:
    os.environ.update(environment)
    count_graphs(answers, d_model)


@pytest.mark.slow
def test_a_block_of_width_512_is_one_graph_under_ddp(tmp_path: Path) -> None:
    """PyTorch would cut it where one of DDP's gradient buckets is full, since the block is larger than a bucket."""
    answers = CONTEXT.Queue()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        CONTEXT.Process(target=_call, args=(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, answers, 512))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert all(size > 2**20 for _, size in found)  # DDP's first bucket
    assert [n_graphs for n_graphs, _ in found] == [1, 1]
