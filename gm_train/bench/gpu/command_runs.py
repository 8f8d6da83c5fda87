"""The part `commands`: `gm-train eval` and `gm-train embed` on the checkpoint that the part `losses` has trained."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataError
from gm_train.bench.gpu.gpu_cells import ATLAS, FEW
from gm_train.bench.gpu.gpu_plan import TRAINED
from gm_train.bench.gpu.scene import Row, Scene

#: Largest relative error of the vectors in bf16, in the Euclidean norm, from the CPU's in fp32.
LIMIT = 5e-2


def run_commands(scene: Scene) -> None:
    """Keep the seconds and scores of an evaluation, and the errors of vectors beside those that the CPU computes."""
    checkpoint, cells = scene.out / TRAINED, scene.cells
    results: Row = {"problems": []}
    evaluated = scene.out / "eval"
    words: list[str | Path] = ["--label", "cell_type", "--mask-seeds", "1", "--max-cells", "200", "--out", evaluated]
    embeddings = {"device": (ATLAS, "bf16"), "cpu": (FEW, "fp32")}
    vectors = {}
    # All at the same time: they mostly start.
    with ThreadPoolExecutor() as pool:
        scores = pool.submit(scene.command, "eval", checkpoint, cells / ATLAS, *words)
        running = {}
        for name, (source, precision) in embeddings.items():
            out = scene.out / f"embedded-{name}.h5ad"
            out.unlink(missing_ok=True)
            running[name] = pool.submit(
                scene.command, "embed", checkpoint, cells / source, out, "--precision", precision, on_cpu=name == "cpu"
            )
        for name, (_, precision) in embeddings.items():
            try:
                text, seconds = running[name].result()
            except DataError as error:
                results["problems"].append(f"embed ({name}): {error}")
                scene.keep(results)
                continue
            vectors[name] = read_vectors(scene.out / f"embedded-{name}.h5ad")
            rate = next((line for line in text.splitlines() if "cells/s" in line), "")
            results[f"embed_{name}"] = {"seconds": seconds, "precision": precision, "rate": rate}
            scene.keep(results)
        if len(vectors) == len(embeddings):
            expected = vectors["cpu"]
            results["embed_off"] = relative_norm(vectors["device"][: len(expected)], expected)
            if not results["embed_off"] < LIMIT:
                results["problems"].append(
                    f"embed: the vectors are off by {results['embed_off']:.1e}, more than {LIMIT:.0e}"
                )
            scene.keep(results)
        try:
            _, seconds = scores.result()
        except DataError as error:
            results["problems"].append(f"eval: {error}")
        else:
            results["eval"] = read_scores(json.loads((evaluated / "eval.json").read_text()), seconds)
            if not results["eval"]["finite"]:
                results["problems"].append("eval: a score is not finite")
        scene.keep(results)


def read_scores(scores: Row, seconds: float) -> Row:
    """Return the facts of an evaluation: seconds, precision, cells, and whether all its figures are finite."""
    numbers = _numbers(scores)
    return {
        "seconds": seconds,
        "precision": scores["model"]["precision"],
        "cells": scores["cells"],
        "numbers": len(numbers),
        "finite": all(map(math.isfinite, numbers)),
    }


def relative_norm(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the Euclidean norm of the difference over that of what is expected.

    Args:
        found: float32 (cells, d_model). NaN where `expected` has NaN as well: cells without genes of the model.
        expected: float32 (cells, d_model).
    """
    empty = np.isnan(expected)
    if not np.array_equal(empty, np.isnan(found)):
        return float("inf")
    off = np.linalg.norm((found - expected)[~empty]) / np.linalg.norm(expected[~empty])
    return float(off)


def read_vectors(path: Path) -> NDArray[np.float32]:
    """Return the vectors that `gm-train embed` has written: float32 (cells, d_model)."""
    with h5py.File(path) as file:
        found: NDArray[np.float32] = file["obsm/X_genemamba"][:]
    return found


def _numbers(value: object) -> list[float]:
    """All floating-point numbers in nested lists and dictionaries."""
    if isinstance(value, dict):
        return [number for inner in value.values() for number in _numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, float) else []
