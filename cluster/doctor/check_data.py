"""Check what the ranks read: every node must see the same store and the same gene sets."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.doctor.checkup import Answer, Checkup, Level, Problems, amount, differences
from data_shards.errors import DataError
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import Config
from gm_train.objective.pathway import read_gmt

_SHARE = "; other ranks can read it: put it on a file system that every node sees, under the same path"


@dataclass(frozen=True)
class StoreView:
    """A store as one rank sees it.

    Attributes:
        hash: hash of its manifest.
        blocks: SHA-256 of the tokens of one block of each data set, by the data set's name.
        n_bytes: bytes of these blocks.
        seconds: time to read these blocks.
        n_cells: number of cells.
        n_train: number of training cells.
        top_k: maximal number of tokens of a cell.
    """

    hash: str
    blocks: dict[str, str]
    n_bytes: int
    seconds: float
    n_cells: int
    n_train: int
    top_k: int


def view_store(path: str) -> StoreView:
    """Read the manifest, the tokenizer, and the middle block of each data set.

    Raises:
        DataError: there is no such store, or it is damaged.
    """
    reader = StoreReader(path, cache_bytes=0)
    manifest = reader.manifest
    if Tokenizer.load(reader.path).hash != manifest.tokenizer_hash:
        raise DataError(f"{path}: its vocabulary or medians are not the ones it was built with: build the store again")
    blocks: dict[str, str] = {}
    n_bytes, first = 0, 0
    start = time.perf_counter()
    for entry in manifest.datasets:
        n_blocks = -(-entry.n_cells // manifest.block_cells)
        block = reader.read([first + n_blocks // 2])[0] if n_blocks else None
        if block is not None:
            content = block.tokens.tobytes() + block.indptr.tobytes() + block.split.tobytes()
            blocks[entry.name] = hashlib.sha256(content).hexdigest()
            n_bytes += len(content)
        first += n_blocks
    return StoreView(
        manifest.hash,
        blocks,
        n_bytes,
        time.perf_counter() - start,
        manifest.n_cells,
        sum(entry.n_train for entry in manifest.datasets),
        manifest.top_k,
    )


def check_store(checkup: Checkup, config: Config) -> None:
    """Check that all ranks can read the store, see the same one, and can train on it."""
    path = config.data.store
    answers = checkup.ask("store", lambda: view_store(path), hint=_SHARE)
    if answers is None:
        return
    view = answers[0].value
    slowest = max(one.value.seconds for one in answers)
    alike = f", alike on {len(answers)} ranks" if len(answers) > 1 else ""
    blocks = (
        "a block of its data set" if len(view.blocks) == 1 else f"a block of each of its {len(view.blocks)} data sets"
    )
    measured = (
        f"{path}: {view.n_cells:,} cells, hash {view.hash[:12]}; {blocks} read{alike} "
        f"({amount(view.n_bytes)} in {slowest * 1000:.0f} ms at most)"
    )
    problems = store_problems(path, answers, config.data.row_length)
    checkup.conclude("store", "" if problems else measured, problems)


def store_problems(path: str, answers: Sequence[Answer[StoreView]], row_length: int) -> Problems:
    """List differences between the stores that the ranks see, and what makes a store useless for a run.

    Args:
        path: the store, as configured.
        answers: the store as each rank sees it.
        row_length: tokens of a row (`data.row_length`).
    """
    if text := differences(answers, lambda view: view.hash[:12]):
        fix = "let all ranks read one store on a file system that every node sees"
        return [(Level.FAIL, f"data.store={path}: the ranks see stores of different hashes: {text}: {fix}")]
    problems: Problems = []
    for name in answers[0].value.blocks:
        if text := differences(answers, lambda view, name=name: view.blocks[name][:12]):  # type: ignore[misc]
            fix = f"`gm-train data verify {path}` on each node names what is damaged; then copy the store again"
            problems.append((Level.FAIL, f"{path}/{name}: the same block has different hashes: {text}: {fix}"))
    view = answers[0].value
    if view.n_train == 0:
        problems.append((Level.FAIL, f"{path}: has no training cells: build it with other splits"))
    if view.top_k > row_length:
        problems.append(
            (
                Level.FAIL,
                f"{path}: cells have up to {view.top_k:,} tokens, but a row holds data.row_length={row_length:,}: "
                "raise data.row_length, or build the store with a smaller --top-k",
            )
        )
    return problems


def check_pathways(checkup: Checkup, config: Config) -> None:
    """Check that all ranks can read the gene sets and see the same file."""
    path = config.objective.pathways
    if not path:
        checkup.conclude("pathways", "none: objective.pathways is empty, so there is no L_pathway", [])
        return

    def look() -> tuple[int, str]:
        n_sets = len(read_gmt(Path(path)))
        return n_sets, hashlib.sha256(Path(path).read_bytes()).hexdigest()

    answers = checkup.ask("pathways", look, hint=_SHARE)
    if answers is None:
        return
    problems: Problems = []
    if text := differences(answers, lambda value: value[1][:12]):
        fix = "let all ranks read one file on a file system that every node sees"
        problems.append((Level.FAIL, f"objective.pathways={path}: the ranks see different files: {text}: {fix}"))
    n_sets, digest = answers[0].value
    checkup.conclude("pathways", "" if problems else f"{path}: {n_sets} gene sets, hash {digest[:12]}", problems)
