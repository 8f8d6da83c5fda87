"""Choose the genes of a vocabulary: all with a median, or those of a list, without those of a deny list."""

from collections.abc import Callable, Collection
from pathlib import Path

from data_shards.counts.gene_ids import map_gene
from data_shards.errors import DataError
from data_shards.files.kinds import kind_of
from data_shards.medians.medians_file import Medians
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import Vocabulary


def make_tokenizer(
    medians: Medians,
    top_k: int,
    dither: bool,
    genes_file: Path | None = None,
    deny_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> Tokenizer:
    """Make the tokenizer of all genes with a median, or only those in `genes_file`; leave out those in `deny_file`.

    Args:
        medians: the medians file; only its genes can be chosen.
        top_k, dither: see `Tokenizer`.
        genes_file, deny_file: text files with one gene id or symbol per line; None for no such list.
        say: called with each line of the report.

    Raises:
        DataError: a file cannot be read, none of its genes is known, or no gene is left.
    """
    chosen = {gene: i for i, gene in enumerate(medians.genes) if medians.counts[i] > 0}
    if not chosen:
        raise DataError("no gene has a median: the cells of the medians have no counts: make medians from other files")
    if genes_file is not None:
        listed = _listed(genes_file, medians)
        wanted = set().union(*listed.values())
        kept = {gene: i for gene, i in chosen.items() if gene in wanted}
        dropped = [name for name, ids in listed.items() if ids.isdisjoint(chosen)]
        examples = f"{', '.join(dropped[:5])}{' …' if len(dropped) > 5 else ''}"
        say(
            f"{genes_file.name}: {len(listed) - len(dropped):,} of {len(listed):,} genes have a median"
            + (f"; {len(dropped):,} dropped ({examples})" if dropped else "")
        )
        if not kept:
            raise _none_known(genes_file, listed, medians)
        chosen = kept
    if deny_file is not None:
        listed = _listed(deny_file, medians, all_of_ambiguous=True)
        denied = set().union(*listed.values())
        if denied.isdisjoint(medians.genes):
            raise _none_known(deny_file, listed, medians)
        left = {gene: i for gene, i in chosen.items() if gene not in denied}
        say(f"{deny_file.name}: {len(chosen) - len(left):,} of {len(listed):,} genes are left out of the vocabulary")
        if not left:
            raise DataError(f"{deny_file}: lists all {len(chosen):,} genes of the vocabulary: list fewer")
        chosen = left
    vocabulary = Vocabulary(medians.kind, tuple(chosen))
    return Tokenizer(vocabulary, medians.medians[list(chosen.values())], top_k, dither, medians.gene_table)


def _listed(path: Path, medians: Medians, all_of_ambiguous: bool = False) -> dict[str, set[str]]:
    """Read a list of genes: each name to its gene ids, an empty set if it is unknown or ambiguous.

    With `all_of_ambiguous`, an ambiguous symbol gives all of its ids.
    """
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        kind = kind_of(path)
        why = f"is {kind}, not a list of genes" if kind not in (None, "a file") else f"cannot be read ({error})"
        raise DataError(f"{path}: {why}: give a text file with one gene per line") from error
    table = medians.gene_table
    listed: dict[str, set[str]] = {}
    for name in names:
        gene, how = map_gene(name, medians.kind, table)
        listed[name] = set() if gene is None else {gene}
        if how == "ambiguous" and all_of_ambiguous and table is not None:
            listed[name] |= table.ids_of[name]
    return listed


def _none_known(path: Path, listed: Collection[str], medians: Medians) -> DataError:
    return DataError(
        f"{path}: none of its {len(listed):,} genes ({', '.join(list(listed)[:3])} …) has a median: "
        f"the medians are of {medians.kind} ids such as {', '.join(medians.genes[:3])}"
    )
