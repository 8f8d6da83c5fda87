"""The notebook docs/first-hour.ipynb runs from counts to a picture, here with few steps."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first-hour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (fit,) = (cell for cell in notebook.cells if "max_steps=800" in cell.source)
    changes = (
        ("max_steps=800", "max_steps=8"),
        ("every_steps=100", "every_steps=4"),
        ("warmup_steps=50", "warmup_steps=4"),
    )
    for steps, fewer in changes:
        fit.source = fit.source.replace(steps, fewer)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.output_type == "error"]
