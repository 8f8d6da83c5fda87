"""Make a token store from counts and medians, or add data sets to one.

Ranges of cells are read, filtered and ranked in parallel; one writer takes them in the order of the files. Everything
is made in a work folder beside the store, from which the next start continues after a kill. At the end it becomes the
store, or a part of it, in one atomic step.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from data_shards.counts.count_options import CountOptions
from data_shards.counts.filters import CellFilter
from data_shards.files.atomic import refuse_existing
from data_shards.files.fingerprint import read_fingerprints, state_of
from data_shards.prepare.assemble import build_store
from data_shards.prepare.rank_datasets import RankedDataset, Ranking, rank_datasets
from data_shards.prepare.splits import Earlier, SplitOptions, earlier_splits, refuse_too_few
from data_shards.prepare.store_plan import StoreOptions, plan_like, plan_more, plan_new
from data_shards.prepare.store_source import SourceOptions, bind_source, refuse_changed
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.workers.workers import Workers

Say = Callable[[str], None]


def make_store(
    paths: Sequence[Path],
    medians_path: Path | None,
    out: Path,
    options: CountOptions | None = None,
    *,
    top_k: int | None = None,
    dither: bool = False,
    genes_file: Path | None = None,
    deny_file: Path | None = None,
    keep_values: bool = False,
    cells: CellFilter | None = None,
    obs_columns: Sequence[str] | None = None,
    splits: SplitOptions | None = None,
    min_mapped: float = 0.5,
    workers: int = 1,
    dask: str | None = None,
    add: bool = False,
    like: Tokenizer | None = None,
    say: Say = print,
) -> Manifest:
    """Tokenize the cells of files into a new store, or add them to one.

    Args:
        paths: AnnData files; their stems name the data sets, in this order.
        medians_path: what `make_medians` wrote. With `add` or `like` it may be None; medians that are not the store's
            raise.
        out: a new `.zarr` directory, or with `add` the store to add to.
        options: how counts are read, for all files.
        top_k, dither, genes_file, deny_file, keep_values: as in `StoreOptions`; with `add`, values other than the
            store's raise.
        cells: which cells are left out.
        obs_columns: columns of obs that are kept; None keeps all.
        splits: which cells are held out.
        min_mapped: share of a file's genes that must have Ensembl ids, if ids are Ensembl ids.
        workers: processes that rank, if there is no scheduler; the result does not depend on it.
        dask: address of a Dask scheduler whose workers rank.
        add: add the files to the data sets of `out`.
        like: the tokenizer of a model, for a new store whose cells are ranked as it expects them.
        say: called with each line of the report.

    Raises:
        DataError: `out` exists, a file cannot be used, counts are bad, or no cell is left.
    """
    splits = splits or SplitOptions()
    # Dask's workers have other working directories, and the store that is added to may be a link to another disk.
    paths, out = [path.absolute() for path in paths], out.resolve() if add else out.absolute()
    shared = StoreOptions(top_k, dither, genes_file, deny_file, keep_values)
    own = SourceOptions(
        options or CountOptions(),
        cells or CellFilter(),
        None if obs_columns is None else tuple(obs_columns),
        min_mapped,
    )
    if not add:
        refuse_existing(out)
    if like is not None:
        plan = plan_like(like, shared)
    else:
        plan = plan_more(out, medians_path, shared) if add else plan_new(medians_path, shared, say)
    plan.check_names(out, [path.stem for path in paths])
    # Check all files first: an unusable one must not be found only after hours of work on the others.
    sources, states = [], []
    for path in paths:
        states.append(state_of(path))
        source, lines = bind_source(path, own, plan.tokenizer, splits)
        sources.append(source)
        for line in lines:
            say(line)
    earlier = Earlier() if plan.store is None else earlier_splits(out, plan.store, say)
    refuse_too_few([source.donors for source in sources], splits, earlier)
    with Workers(workers, dask, say) as pool:
        files = read_fingerprints(paths, pool)
        for file, state in zip(files, states, strict=True):
            file.require_state(state)
        for name in refuse_changed(files, plan.of_medians) if plan.of_medians else ():
            say(f"{name}: is not among the data sets of the medians: it is ranked with medians of other data sets")

        def rank(works: Sequence[Path]) -> list[RankedDataset]:
            rankings = [
                Ranking(work, source, file, plan.tokenizer, plan.values)
                for work, source, file in zip(works, sources, files, strict=True)
            ]
            return rank_datasets(rankings, pool, say)

        donor_keys = {source.name: source.donor_key for source in sources}
        return build_store(out, plan, donor_keys, splits, earlier, rank, say)
