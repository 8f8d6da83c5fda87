"""What the ranks read: the same store and the same gene sets on every node."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.doctor.checkup import Checkup, Level, Problems, Said, amount, differences
from data_shards.errors import DataError
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import Config
from gm_train.objective.pathway import read_gmt

_SHARE = "; other ranks can read it: put it on a file system that every node sees, under one name"


@dataclass(frozen=True)
class StoreView:
    """A store as one rank sees it.

    Attributes:
        hash: of its manifest.
        blocks: SHA-256 of the tokens of one block of each data set.
        n_bytes, seconds: what these blocks hold, and the time to read them.
        n_cells, n_train: cells, and those of them to train on.
        top_k: most tokens of a cell.
    """

    hash: str
    blocks: dict[str, str]
    n_bytes: int
    seconds: float
    n_cells: int
    n_train: int
    top_k: int


def view_store(path: str) -> StoreView:
    """Read the manifest, the tokenizer, and of each data set the block in its middle.

    Raises:
        DataError: there is no store, or what was read is damaged.
    """
    reader = StoreReader(path, cache_bytes=0)
    manifest = reader.manifest
    if Tokenizer.load(reader.path).hash != manifest.tokenizer_hash:
        raise DataError(f"{path}: its vocabulary and medians are not those that it was made with: build it again")
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
    path = config.data.store
    said = checkup.ask("store", lambda: view_store(path), hint=_SHARE)
    if said is None:
        return
    view = said[0].value
    slowest = max(one.value.seconds for one in said)
    alike = f", alike on {len(said)} ranks" if len(said) > 1 else ""
    blocks = (
        "a block of its data set" if len(view.blocks) == 1 else f"a block of each of its {len(view.blocks)} data sets"
    )
    measured = (
        f"{path}: {view.n_cells:,} cells, hash {view.hash[:12]}; {blocks} read{alike} "
        f"({amount(view.n_bytes)} in {slowest * 1000:.0f} ms at most)"
    )
    problems = store_problems(path, said, config.data.row_length)
    checkup.conclude("store", "" if problems else measured, problems)


def store_problems(path: str, said: Sequence[Said[StoreView]], row_length: int) -> Problems:
    """Where the ranks see different stores, or one that a run cannot use."""
    if text := differences(said, lambda view: view.hash[:12]):
        mend = "let all read one store on a file system that every node sees"
        return [(Level.FAIL, f"data.store={path}: the ranks see stores of different hashes: {text}: {mend}")]
    problems: Problems = []
    for name in said[0].value.blocks:
        if text := differences(said, lambda view, name=name: view.blocks[name][:12]):  # type: ignore[misc]
            mend = f"`gm-train data verify {path}` on each node names what is damaged; then copy the store again"
            problems.append((Level.FAIL, f"{path}/{name}: the same block has different hashes: {text}: {mend}"))
    view = said[0].value
    if view.n_train == 0:
        problems.append((Level.FAIL, f"{path}: has no training cells: build it with other splits"))
    if view.top_k > row_length:
        problems.append(
            (
                Level.FAIL,
                f"{path}: cells have up to {view.top_k:,} tokens, rows data.row_length={row_length:,}: raise "
                "data.row_length, or build the store with a smaller --top-k",
            )
        )
    return problems


def check_pathways(checkup: Checkup, config: Config) -> None:
    path = config.objective.pathways
    if not path:
        checkup.conclude("pathways", "none: objective.pathways is empty, so there is no L_pathway", [])
        return

    def look() -> tuple[int, str]:
        n_sets = len(read_gmt(Path(path)))
        return n_sets, hashlib.sha256(Path(path).read_bytes()).hexdigest()

    said = checkup.ask("pathways", look, hint=_SHARE)
    if said is None:
        return
    problems: Problems = []
    if text := differences(said, lambda value: value[1][:12]):
        mend = "let all read one file on a file system that every node sees"
        problems.append((Level.FAIL, f"objective.pathways={path}: the ranks see different files: {text}: {mend}"))
    n_sets, digest = said[0].value
    checkup.conclude("pathways", "" if problems else f"{path}: {n_sets} gene sets, hash {digest[:12]}", problems)
