"""Label the cells of a file of any size with a fine-tuned model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.errors import OptionError
from data_shards.files.atomic import refuse_existing, whole_file
from data_shards.files.fingerprint import Fingerprint
from data_shards.workers import interrupts
from gm_train.annotation.class_probabilities import (
    calibration_of,
    choose_classes,
    class_probabilities,
    open_annotator,
)
from gm_train.embedding.anndata_copy import AnnDataCopy, copied, refuse_output, require_groups
from gm_train.embedding.embed import default_device, default_precision
from gm_train.embedding.embedded_chunks import EmbeddedChunks
from gm_train.embedding.record import record_of
from gm_train.embedding.token_chunks import TokenChunks
from gm_train.evaluation.calibration import CONFIDENCE
from gm_train.model.classes import UNKNOWN, Calibration

#: Names of what is written.
LABEL, PROBABILITY, PROBABILITIES, RECORD = (
    "genemamba_label", "genemamba_probability", "genemamba_probabilities", "genemamba_annotation",
)  # fmt: skip

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PredictOptions:
    """How to label a file.

    Attributes:
        threshold: smallest probability with which a cell gets a label, 0 to 1; None: the calibrated one.
        counts: where the counts are.
        min_mapped: refuse a file if less than this share of its genes can be mapped, 0 to 1.
    """

    threshold: float | None = None
    counts: CountOptions = field(default_factory=CountOptions)
    min_mapped: float = 0.5

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise OptionError(f"--threshold {self.threshold:g}: is a probability, 0 to 1")


@dataclass(frozen=True)
class Predicted:
    """What labelling a file has done.

    Attributes:
        names: the classes.
        n_of_class: int64 (n_classes,), number of cells with each label.
        n_cells: cells of the file.
        n_empty: cells without a token, which are unknown.
        seconds: from the first cell to the last, reading and writing included.
    """

    names: tuple[str, ...]
    n_of_class: I64
    n_cells: int
    n_empty: int
    seconds: float


def predict_file(
    path: Path,
    source: Path,
    out: Path,
    options: PredictOptions | None = None,
    say: Callable[[str], object] = print,
) -> Predicted:
    """Label the cells of a file; write a copy of the file with the labels, or a table of them.

    Besides 8 bytes a cell, memory does not grow with the number of cells.

    Args:
        path: a run of `gm-train annotate` for its best checkpoint, or a checkpoint with a classifier.
        source: raw counts, an `.h5ad` file or an AnnData-Zarr folder; it is not changed.
        out: a new `.h5ad` file or `.zarr` folder: a copy with `genemamba_label` and `genemamba_probability` in obs,
            `genemamba_probabilities` in obsm and `genemamba_annotation` in uns. Or a new `.csv` file with a line for
            each cell.
        options: how to label.
        say: takes lines of the report.

    Raises:
        DataError: there is no classifier or no threshold, the file cannot be used, or `out` exists or cannot be
            written.
    """
    options = options or PredictOptions()
    is_table = out.suffix == ".csv"
    if is_table:
        refuse_existing(out)
    elif out.suffix not in (".h5ad", ".zarr"):
        raise OptionError(f"{out}: let its name end in .h5ad or .zarr (a copy of {source.name}) or .csv (a table)")
    else:
        refuse_output(source, out)
    checkpoint, model, tokenizer, config, classes = open_annotator(path)
    calibration = calibration_of(checkpoint, classes)
    threshold = calibration.threshold if options.threshold is None else options.threshold
    say(f"checkpoint {checkpoint.path}, step {checkpoint.step:,}: {classes.label!r}, {len(classes.names)} classes")
    say(_describe_threshold(threshold, calibration if options.threshold is None else None))
    device = default_device()
    model.to(device)
    with open_counts(source, options.counts) as counts:
        if not is_table:
            require_groups(source, ("obs", "obsm", "uns"))
        chunks = TokenChunks(counts, tokenizer, options.min_mapped)
        n_genes = len(tokenizer.vocabulary.genes)
        say(f"{counts.n_cells:,} cells; {chunks.columns.report}; {chunks.columns.found:,} of the model's {n_genes:,}")
        fingerprint = Fingerprint.of(source)
        n_of_class = np.zeros(len(classes.names), np.int64)
        opened = (
            _opened_table(counts, out, classes.names) if is_table else _opened_copy(counts, source, out, classes.names)
        )
        with opened as output:
            embedded = EmbeddedChunks(model, chunks, counts.n_cells, "mean", default_precision(config, device))
            for first, vectors in embedded:
                probabilities = class_probabilities(model, vectors, calibration.temperature)
                chosen, largest = choose_classes(probabilities, threshold)
                output.write(first, probabilities, chosen, largest)
                n_of_class += np.bincount(chosen[chosen >= 0], minlength=len(n_of_class))
            record = record_of(checkpoint, model, tokenizer, counts, chunks, chunks.drift())
            record["hashes"]["input"] = fingerprint.sha256
            record["dropped"]["cells_without_tokens"] = embedded.n_empty
            used = {name: value for name, value in asdict(options.counts).items() if value is not None}
            record |= {"label": classes.label, "classes": list(classes.names), "options": used}
            record |= {"temperature": calibration.temperature, "threshold": np.nan if threshold is None else threshold}
            output.finish(record)
            fingerprint.require_unchanged()
    return Predicted(classes.names, n_of_class, counts.n_cells, embedded.n_empty, embedded.seconds)


def _describe_threshold(threshold: float | None, calibration: Calibration | None) -> str:
    """Say when a cell is unknown; `calibration` is None if the threshold was given."""
    if threshold is None:
        assert calibration is not None
        return (
            f"every cell will be {UNKNOWN}: {calibration.n_cells:,} validation cells cannot show that at most "
            f"{calibration.max_error:.0%} of the labels would be wrong; --threshold sets a threshold by hand"
        )
    how = "as given"
    if calibration is not None:
        how = (
            f"on {calibration.n_cells:,} validation cells {calibration.n_wrong:,} of {calibration.n_labelled:,} labels "
            f"were wrong: at most {calibration.max_error:.0%} of cells like these, with {CONFIDENCE:.0%} confidence"
        )
    return f"cells are {UNKNOWN} below a probability of {threshold:.3f} ({how})"


class _Copy:
    """Labels in a copy of the file.

    Args:
        copy: the copy.
        n_cells: number of cells.
        names: the classes.
    """

    def __init__(self, copy: AnnDataCopy, n_cells: int, names: tuple[str, ...]) -> None:
        self._copy, self._names = copy, names
        self._array = copy.add_array("obsm", PROBABILITIES, n_cells, len(names))
        self._codes = np.empty(n_cells, np.int32)
        self._largest = np.empty(n_cells, np.float32)

    def write(self, first: int, probabilities: F32, chosen: I64, largest: F32) -> None:
        """Write some cells, from cell `first` on."""
        self._array.write(first, probabilities)
        here = slice(first, first + len(chosen))
        self._codes[here] = np.where(chosen < 0, len(self._names), chosen)
        self._largest[here] = largest

    def finish(self, record: dict[str, Any]) -> None:
        """Write what is known once all cells are."""
        self._copy.add_obs(LABEL, pd.Categorical.from_codes(self._codes, pd.Index([*self._names, UNKNOWN])))
        self._copy.add_obs(PROBABILITY, self._largest)
        self._copy.add_element("uns", RECORD, record)


class _Table:
    """Labels as lines of a CSV file.

    Args:
        file: open for writing.
        counts: the cells.
        names: the classes.
    """

    def __init__(self, file: TextIO, counts: CountFile, names: tuple[str, ...]) -> None:
        self._file, self._counts = file, counts
        # -1 is the last label: unknown.
        self._labels = np.array([*names, UNKNOWN], dtype=object)
        self._columns = ["cell_id", "label", "probability", *(f"P({name})" for name in names)]
        pd.DataFrame(columns=self._columns).to_csv(file, index=False)

    def write(self, first: int, probabilities: F32, chosen: I64, largest: F32) -> None:
        """Write some cells, from cell `first` on."""
        interrupts.check()
        ids = self._counts.read_obs(first, first + len(chosen), []).index
        table = pd.DataFrame({"cell_id": ids, "label": self._labels[chosen], "probability": largest})
        table = pd.concat([table, pd.DataFrame(probabilities)], axis=1)
        table.to_csv(self._file, index=False, header=False, float_format="%.6g")

    def finish(self, record: dict[str, Any]) -> None:
        """Do nothing: a table has no place for the record."""


@contextmanager
def _opened_copy(counts: CountFile, source: Path, out: Path, names: tuple[str, ...]) -> Iterator[_Copy]:
    with copied(source, out) as copy:
        yield _Copy(copy, counts.n_cells, names)


@contextmanager
def _opened_table(counts: CountFile, out: Path, names: tuple[str, ...]) -> Iterator[_Table]:
    with whole_file(out) as path, path.open("w", encoding="utf-8") as file:
        yield _Table(file, counts, names)
