"""Other packages leave PyTorch the number of threads that it has."""

import os
import subprocess
import sys

import pytest

#: In a process of its own, since only the first parallel loop of numba changes the number.
MAP = """
import numpy as np
import torch
from gm_train.evaluation.embedding_maps import _umap
_umap(np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32))
print(torch.get_num_threads())
"""
SCIB = """
import torch
from gm_train.evaluation.integration.scib_scores import scib_scores
from tests.support.integration_cases import clusters
scib_scores(*clusters(n_types=4, n_batches=2, cells_each=15, batch_effect=1.0))
print(torch.get_num_threads())
"""

SCGRAPH = """
import numpy as np
import scipy.sparse
import torch
from gm_train.evaluation.integration.scgraph import GENES, _components
counts = np.random.default_rng(0).poisson(0.5, size=(120, GENES + 500))
_components(scipy.sparse.csr_matrix(np.log1p(counts).astype(np.float32)))
print(torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [MAP, SCIB, SCGRAPH], ids=["umap", "scib", "scgraph"])
def test_the_number_of_threads_stays(program: str) -> None:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=one_thread)
    assert done.stdout.splitlines()[-1:] == ["1"], done.stderr
