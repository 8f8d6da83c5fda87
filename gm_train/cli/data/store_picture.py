"""Draw a token store: lengths of cells, data sets and splits, padding, and how common its genes are."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_shards.inspect.store_summary import StoreSummary
from gm_train.run.curves import DPI

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#ccb974")
_REST = "#8c8c8c"
#: Data sets with their own colour, and data sets with their own bar, at most.
_DRAWN, _BARS = len(_COLOURS), 16
_BINS = 48


def draw_store(summary: StoreSummary, path: Path) -> None:
    """Draw a store into a PNG file.

    Raises:
        DataError: a chunk of the store is damaged.
    """
    figure = Figure(figsize=(11.5, 7.4), layout="constrained")
    lengths, datasets, rows, genes = figure.subplots(2, 2).ravel()
    _draw_lengths(lengths, summary)
    _draw_datasets(datasets, summary)
    _draw_rows(rows, summary)
    _draw_genes(genes, summary)
    for axis in (lengths, datasets, rows, genes):
        axis.grid(alpha=0.25, axis="x" if axis is datasets else "both")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    manifest = summary.manifest
    figure.suptitle(
        f"{summary.path.name}: {manifest.n_cells:,} cells, {manifest.n_tokens:,} tokens of {manifest.n_genes:,} genes",
        fontsize=12,
        fontweight="bold",
    )
    figure.savefig(path, dpi=DPI, format="png")


def _draw_lengths(axis: Axes, summary: StoreSummary) -> None:
    """Draw the lengths of cells as shares: one curve for each large data set, one for all others."""
    order = np.argsort([-cells.sum() for cells in summary.lengths], kind="stable")
    names = [entry.name for entry in summary.manifest.datasets]
    drawn = order if len(order) <= _DRAWN else order[: _DRAWN - 1]
    groups = [(names[i], summary.lengths[i], colour) for i, colour in zip(drawn, _COLOURS, strict=False)]
    if len(drawn) < len(order):
        others = order[len(drawn) :]
        groups.append((f"{len(others):,} others", sum(summary.lengths[i] for i in others), _REST))
    # Cells that were cut to top-k are in no bin: their peak would dwarf all others.
    top_k = summary.manifest.top_k
    edges = np.unique(np.linspace(0, min(summary.longest + 1, top_k), _BINS + 1).round().astype(int))
    widths = np.diff(edges)
    for name, cells, colour in groups:
        # The widths of the bins differ by one: rescale to the mean width, so that the shares are comparable.
        shares = np.add.reduceat(cells[: edges[-1]], edges[:-1]) / cells.sum() * (widths.mean() / widths)
        full = cells[top_k] / cells.sum()
        label = _short(name) + (f" ({_percent(round(full, 3))} have {top_k:,})" if full else "")
        axis.stairs(shares, edges, color=colour, linewidth=1.4, label=label)
    axis.set_title("Lengths of cells", fontsize=11)
    axis.set(xlabel=f"tokens of a cell, below the top-k of {top_k:,}", ylabel="share of the data set's cells")
    axis.set_xlim(0, edges[-1])
    axis.set_ylim(0, max(axis.dataLim.ymax, 1e-3) * (1.1 + 0.08 * len(groups)))  # the legend has room above
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter(_percent)
    axis.legend(frameon=False, fontsize=8)


def _draw_datasets(axis: Axes, summary: StoreSummary) -> None:
    """Draw the number of cells of each data set, the largest on top, divided by split."""
    entries = sorted(summary.manifest.datasets, key=lambda entry: -entry.n_cells)
    rest = entries[_BARS - 1 :] if len(entries) > _BARS else []
    bars = entries[: len(entries) - len(rest)]
    names = [_short(entry.name) for entry in bars] + ([f"{len(rest):,} others"] if rest else [])
    heights, left = np.arange(len(names)), np.zeros(len(names))
    for split, colour in (("training", _COLOURS[0]), ("validation", _COLOURS[1]), ("test", _COLOURS[2])):
        key = {"training": "n_train"}.get(split, f"n_{split}")
        cells = [getattr(entry, key) for entry in bars] + ([sum(getattr(e, key) for e in rest)] if rest else [])
        if any(cells):
            axis.barh(heights, cells, left=left, color=colour, label=f"{split} ({sum(cells):,})", height=0.7)
        left += cells
    axis.set_title("Data sets and splits", fontsize=11)
    axis.set_xlabel("cells")
    axis.set_yticks(heights, names)
    axis.set_ylim(max(4, len(names)) - 0.4, -0.6)  # so that the bars of a few data sets are not too thick
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.xaxis.set_major_formatter(_number)
    axis.legend(frameon=False, fontsize=8, loc="center right")


def _draw_rows(axis: Axes, summary: StoreSummary) -> None:
    """Draw the share of positions with a token, for one cell per row and for packed rows."""
    lengths = np.unique(np.linspace(summary.longest, 4 * summary.longest, 7).round().astype(int))
    padded, packed = zip(*(summary.fill(int(length)) for length in lengths), strict=True)
    axis.plot(
        lengths, packed, "o-", color=_COLOURS[0], markersize=4, linewidth=1.4, label="whole cells packed into rows"
    )
    axis.plot(lengths, padded, "o-", color=_REST, markersize=4, linewidth=1.4, label="one cell a row, padded")
    axis.set_title("How full rows are", fontsize=11)
    axis.set(xlabel="row length, from the longest cell on", ylabel="positions with a token")
    axis.set_ylim(0, 1.05)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter(_percent)
    axis.legend(frameon=False, fontsize=8, loc="center right")


def _draw_genes(axis: Axes, summary: StoreSummary) -> None:
    """Draw the share of cells that contain each gene."""
    shares, cells = summary.gene_shares()
    seen = shares[shares > 0]
    axis.plot(np.arange(1, len(seen) + 1), seen, color=_COLOURS[0], linewidth=1.6)
    axis.set_title(f"How common genes are (in {cells:,} of the cells)", fontsize=11)
    axis.set(xlabel="genes, from the most common one on", ylabel="share of cells with the gene")
    axis.set(xscale="log", yscale="log")
    axis.text(0.03, 0.05, f"{len(seen):,} of {len(shares):,} genes seen", transform=axis.transAxes, fontsize=8)
    axis.set_ylim(top=1.3)
    axis.xaxis.set_major_formatter(_number)
    axis.yaxis.set_major_formatter(_percent)


def _percent(share: float, position: float = 0) -> str:
    return f"{100 * share:.6g} %"


def _number(number: float, position: float = 0) -> str:
    return f"{number / 1e6:g} M" if abs(number) >= 1e6 else f"{number:,g}"


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]}…{name[-15:]}"
