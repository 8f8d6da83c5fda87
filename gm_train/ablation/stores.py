"""The token stores of an ablation: one for each split and each way of ranking, made once."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils.sparsefuncs import mean_variance_axis

from data_shards.counts.count_file import open_counts
from data_shards.files.atomic import replace_file
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from gm_train.ablation.cells import CellFiles
from gm_train.ablation.definition import Split, StoreChoice

#: Cells of counts read at once.
_ROWS = 4_096


class Stores:
    """Makes the stores of an ablation; one that is there already is used again.

    Args:
        folder: for medians and stores.
        cells: the count files.
        split: which cells are held out.
    """

    def __init__(self, folder: Path, cells: CellFiles, split: Split) -> None:
        self._folder, self._cells, self._split = folder, cells, split

    def recipe(self, choice: StoreChoice, split_seed: int) -> dict[str, Any]:
        """All that a store depends on: cells, how they are read and ranked, and the split."""
        return {
            "cells": self._cells.hash,
            "reading": asdict(self._cells.options),
            "split": asdict(self._split),
            "split_seed": split_seed,
            **asdict(choice),
        }

    def path(self, choice: StoreChoice, split_seed: int) -> Path:
        """Where the store is, or will be."""
        return self._folder / f"store-{_short(self.recipe(choice, split_seed))}.zarr"

    def make(self, choice: StoreChoice, split_seed: int) -> Path:
        """Make a store, unless it is there.

        Args:
            choice: how cells are ranked.
            split_seed: of the split.

        Raises:
            DataError: counts cannot be used, or no donor can be held out.
        """
        path = self.path(choice, split_seed)
        if path.exists():
            return path
        self._folder.mkdir(parents=True, exist_ok=True)
        cells, split = self._cells, self._split
        medians = self._folder / f"medians-{_short([cells.hash, asdict(cells.options)])}.zarr"
        if not medians.exists():
            make_medians(cells.files, medians, cells.options)
        make_store(
            cells.files,
            medians,
            path,
            cells.options,
            top_k=choice.top_k,
            dither=choice.dither,
            genes_file=self._variable_genes(choice.variable_genes),
            splits=SplitOptions(split.by, None, split.validation, split.test, split_seed),
        )
        return path

    def _variable_genes(self, number: int) -> Path | None:
        """Write the list of the genes that vary most over all cells: variance of log1p of counts per 10,000."""
        if not number:
            return None
        path = self._folder / f"genes-{_short([self._cells.hash, number])}.txt"
        parts = []
        for file in self._cells.files:
            with open_counts(file, self._cells.options) as counts:
                names = counts.gene_names
                parts += [chunk for _, chunk in counts.chunks(_ROWS)]
        expression = scipy.sparse.vstack(parts, format="csr").astype(np.float64)
        totals = np.asarray(expression.sum(axis=1)).ravel()
        expression = (scipy.sparse.diags(10_000.0 / np.maximum(totals, 1.0)) @ expression).log1p()
        _, variances = mean_variance_axis(expression.tocsr(), axis=0)
        chosen = np.sort(np.argsort(-variances, kind="stable")[:number])
        replace_file(path, "".join(f"{names[gene]}\n" for gene in chosen))
        return path


def _short(recipe: Any) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
