"""The definition of an ablation: a question, cells, a split, variants, seeds and what is scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Where definitions are, seen from the folder in which commands are given.
FOLDER = Path("configs/ablations")
PBMC, ATLAS, DATA = "pbmc", "atlas", "data"
SOURCES = (PBMC, ATLAS, DATA)
#: Stands for the table of who regulates whom of a simulated atlas.
REGULATION = "$regulation"


@dataclass(frozen=True)
class Cells:
    """Where cells come from.

    Attributes:
        source: "pbmc" (the blood cells in scanpy's package), "atlas" (simulated) or "data" (a file named by `--data`).
        atlas: options of the simulator (`AtlasOptions`).
        parts: shares of the atlas that become data sets of their own, `atlas-1`, `atlas-2` and so on; none for one.
        reading: how counts of a file are read (`CountOptions`).
    """

    source: str = PBMC
    atlas: dict[str, Any] = field(default_factory=dict)
    parts: list[float] = field(default_factory=list)
    reading: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Which cells are held out.

    Attributes:
        by: "donor" or "cell", as `gm-train data shards --split-by`.
        validation, test: shares of the cells.
        every_seed: whether each seed draws a split of its own, as suits few cells.
        seed: of the split, unless every seed draws its own.
    """

    by: str = "donor"
    validation: float = 0.15
    test: float = 0.2
    every_seed: bool = False
    seed: int = 0


@dataclass(frozen=True)
class StoreChoice:
    """How cells are ranked. A variant may change it: `store.dither=true`.

    Attributes:
        top_k: largest number of tokens of a cell.
        dither: whether counts are dithered before they are ranked.
        variable_genes: how many of the genes that vary most form the vocabulary; 0 for all.
    """

    top_k: int = 512
    dither: bool = False
    variable_genes: int = 0


@dataclass(frozen=True)
class Scoring:
    """What is scored on the test cells, as by `gm-train eval`.

    Attributes:
        tasks: keys of evaluation tasks.
        label, batch: columns of obs; empty for none.
        regulation: a table of regulators and their targets, or `REGULATION`; empty for none.
        max_cells: largest number of cells to read.
        mask_seeds: how often genes are hidden anew.
    """

    tasks: list[str] = field(default_factory=lambda: ["masked", "missing", "probes", "robustness"])
    label: str = ""
    batch: str = ""
    regulation: str = ""
    max_cells: int = 2_000
    mask_seeds: int = 3


@dataclass(frozen=True)
class Definition:
    """An ablation.

    Attributes:
        question: one sentence.
        cells, split, store, scoring: see their classes.
        base: files and settings of all variants, as `gm-train fit` takes them.
        variants: name to the settings that it changes.
        compare: variant to the one that it is compared with; without an entry, that is the first one.
        seeds: of the models, and of the splits if `split.every_seed`.
    """

    question: str
    cells: Cells
    base: list[str]
    variants: dict[str, list[str]]
    compare: dict[str, str] = field(default_factory=dict)
    split: Split = field(default_factory=Split)
    store: StoreChoice = field(default_factory=StoreChoice)
    scoring: Scoring = field(default_factory=Scoring)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
