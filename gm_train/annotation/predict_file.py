"""Label the cells of a file of any size with a fine-tuned model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.errors import OptionError
from data_shards.files.atomic import whole_file
from data_shards.files.fingerprint import Fingerprint
from data_shards.workers import interrupts
from gm_train.annotation.class_probabilities import (
    choose_classes,
    class_probabilities,
    open_annotator,
    threshold_of,
)
from gm_train.embedding.anndata_copy import copied, refuse_output, require_groups
from gm_train.embedding.embed import default_device, default_precision
from gm_train.embedding.embedded_chunks import EmbeddedChunks
from gm_train.embedding.record import record_of
from gm_train.embedding.token_chunks import TokenChunks
from gm_train.model.classes import UNKNOWN

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


class _Output(Protocol):
    def write(self, first: int, probabilities: F32, chosen: I64, largest: F32) -> None:
        """Write some cells, from cell `first` on."""

    def finish(self, record: dict[str, Any]) -> None:
        """Write what is known once all cells are."""


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
    if not is_table:
        if out.suffix not in (".h5ad", ".zarr"):
            raise OptionError(f"{out}: let its name end in .h5ad or .zarr (a copy of {source.name}) or .csv (a table)")
        refuse_output(source, out)
    checkpoint, model, tokenizer, config, classes = open_annotator(path)
    calibration, threshold = threshold_of(checkpoint, classes, options.threshold)
    say(f"checkpoint {checkpoint.path}, step {checkpoint.step:,}: {classes.label!r}, {len(classes.names)} classes")
    say(_describe_threshold(threshold, options.threshold is None, calibration.max_error))
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
        opened = _table(counts, out, classes.names) if is_table else _copy(counts, source, out, classes.names)
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


def _describe_threshold(threshold: float | None, is_calibrated: bool, max_error: float) -> str:
    if threshold is None:
        return (
            f"every cell will be {UNKNOWN}: on the validation cells no threshold kept wrong labels at {max_error:.0%}; "
            "--threshold sets one"
        )
    how = (
        f"calibrated for {max_error:.0%} wrong labels on cells like the validation cells" if is_calibrated else "given"
    )
    return f"cells are {UNKNOWN} below a probability of {threshold:.3f} ({how})"


@contextmanager
def _copy(counts: CountFile, source: Path, out: Path, names: tuple[str, ...]) -> Iterator[_Output]:
    with copied(source, out) as copy:
        array = copy.add_array("obsm", PROBABILITIES, counts.n_cells, len(names))
        codes = np.empty(counts.n_cells, np.int32)
        certainty = np.empty(counts.n_cells, np.float32)

        class Copy:
            def write(self, first: int, probabilities: F32, chosen: I64, largest: F32) -> None:
                array.write(first, probabilities)
                here = slice(first, first + len(chosen))
                codes[here] = np.where(chosen < 0, len(names), chosen)
                certainty[here] = largest

            def finish(self, record: dict[str, Any]) -> None:
                copy.add_obs(LABEL, pd.Categorical.from_codes(codes, pd.Index([*names, UNKNOWN])))
                copy.add_obs(PROBABILITY, certainty)
                copy.add_element("uns", RECORD, record)

        yield Copy()


@contextmanager
def _table(counts: CountFile, out: Path, names: tuple[str, ...]) -> Iterator[_Output]:
    labels = np.array([*names, UNKNOWN], dtype=object)
    with whole_file(out) as path, path.open("w") as file:

        class Table:
            def write(self, first: int, probabilities: F32, chosen: I64, largest: F32) -> None:
                interrupts.check()
                ids = counts.read_obs(first, first + len(chosen), []).index
                # -1 is the last label: unknown.
                columns = {"cell_id": ids, "label": labels[chosen], "probability": largest}
                table = pd.concat(
                    [pd.DataFrame(columns).reset_index(drop=True), pd.DataFrame(probabilities, columns=list(names))],
                    axis=1,
                )
                table.to_csv(file, index=False, header=first == 0, float_format="%.6g")

            def finish(self, record: dict[str, Any]) -> None:
                """Do nothing: a table has no place for the record."""

        yield Table()
