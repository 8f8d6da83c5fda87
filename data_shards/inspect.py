"""A store in words."""

import numpy as np

from data_shards.arrays import open_array
from data_shards.genes import GeneReport
from data_shards.manifest import Manifest
from data_shards.place import Place, place_of

_STEP = 1 << 20


def describe_store(store: str | Place) -> list[str]:
    """Lines on the data sets, lengths, splits and hashes of a store.

    Raises:
        DataError: there is no store, or it is damaged.
    """
    path = place_of(store)
    manifest = Manifest.load(path)
    lengths = np.zeros(manifest.top_k + 1, np.int64)
    for entry in manifest.datasets:
        indptr = open_array(path, entry.name, "indptr")
        for first in range(0, entry.n_cells, _STEP):
            bounds = indptr.read(first, min(first + _STEP, entry.n_cells) + 1)
            lengths += np.bincount(np.diff(bounds), minlength=len(lengths))
    cumulative = lengths.cumsum()
    at = [int(np.searchsorted(cumulative, share * cumulative[-1])) for share in (0.05, 0.5, 0.95)]
    longest = int(np.flatnonzero(lengths).max())
    mean = manifest.n_tokens / manifest.n_cells
    lines = [
        f"{path}",
        f"  cells        {manifest.n_cells:,}",
        f"  tokens       {manifest.n_tokens:,}",
        f"  genes        {manifest.n_genes:,} ({manifest.kind} ids)",
        f"  top-k        {manifest.top_k:,}" + (", dithered counts" if manifest.dither else ""),
        f"  tokens/cell  mean {mean:,.0f}, median {at[1]:,}, 5 % to 95 %: {at[0]:,} to {at[2]:,}, longest {longest:,}",
        f"  packing      saves up to {1 - mean / longest:.0%} of what padding each cell to {longest:,} would compute",
        f"  blocks       of {manifest.block_cells} cells",
        f"  vocabulary   {manifest.vocabulary_hash}",
        f"  medians      {manifest.medians_hash}, of the medians file {manifest.medians_file_hash}",
        f"  store        {manifest.hash}",
    ]
    if manifest.options["genes_file"] is not None:
        lines.append(f"  --genes      {manifest.options['genes_file']}, SHA-256 {manifest.options['genes_file_hash']}")
    for entry in manifest.datasets:
        how = {
            "donor": f"whole donors ({entry.donor_key})",
            "cell": "single cells, weaker than donors",
            "none": "none held out",
        }
        read = ", ".join(f"{key}={value}" for key, value in entry.counts.items() if value not in (None, False)) or "X"
        examples = tuple(entry.genes["unknown_examples"])
        found = {key: value for key, value in entry.genes.items() if key not in ("in_vocabulary", "unknown_examples")}
        report = GeneReport(**found, unknown_examples=examples)
        lines += [
            f"  {entry.name}",
            f"    from       {entry.source_file} ({read}): {entry.source_cells:,} cells, "
            f"{entry.filtered_cells:,} filtered, {entry.empty_cells:,} without a token",
            f"    genes      {report}; {entry.genes['in_vocabulary']:,} of the vocabulary",
            f"    cells      {entry.n_cells:,}, {entry.n_tokens:,} tokens",
            f"    splits     {entry.n_train:,} training, {entry.n_validation:,} validation, {entry.n_test:,} test, "
            f"by {how[entry.split_by]}",
            f"    content    {entry.content_hash}",
        ]
    return lines
