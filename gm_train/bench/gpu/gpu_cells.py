"""The part `cells`: simulated cells for all other parts, so that no data has to be brought along."""

import os
import shutil
import time

import anndata

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from gm_train.bench.atlases import simulated_counts
from gm_train.bench.gpu.gpu_plan import READY
from gm_train.bench.gpu.scene import Scene, say
from gm_train.bench.model.workload import Stores, simulated_stores

ATLAS, FIT_STORE, FEW = "none.h5ad", "fit.zarr", "few.h5ad"


def make_cells(scene: Scene) -> None:
    """Simulate an atlas with held-out donors and its store, a few of its cells, and the stores of timed steps."""
    started = time.perf_counter()
    folder, sizes, workers = scene.cells, scene.sizes, min(8, len(os.sched_getaffinity(0)))
    ready = scene.out / READY
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    atlas = simulated_counts(folder, sizes.atlas_cells, "none", workers, say)
    medians, store, few = folder / "fit-medians.zarr", folder / FIT_STORE, folder / FEW
    if not medians.exists():
        make_medians([atlas], medians, workers=workers, say=say)
    if not store.exists():
        make_store([atlas], medians, store, top_k=sizes.fit_length, workers=workers, say=say)
    if not few.exists():
        anndata.read_h5ad(atlas)[: sizes.few_cells].copy().write_h5ad(few)
    say("cells of timed steps")
    simulated_stores(folder, sizes.deep_cells, sizes.natural_cells)
    ready.write_text(repr(sizes))
    scene.keep({"seconds": time.perf_counter() - started, "cells": sizes.deep_cells + sizes.natural_cells})


def timed_stores(scene: Scene) -> Stores:
    """Return the stores of timed steps, which the part `cells` has made."""
    return simulated_stores(scene.cells, scene.sizes.deep_cells, scene.sizes.natural_cells)
