"""Names of data sets, which are taken from the names of their files."""

from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import DataError


def check_names(names: Sequence[str], mend: str = "rename the file") -> None:
    """Refuse data sets of the same name, and names that cannot be those of a group, or of a folder just there."""
    for name in names:
        elsewhere = name != Path(name).name or "\\" in name or "\0" in name
        if elsewhere or name.startswith((".", "__")) or not name or name.endswith((".json", ".npy", ".parquet")):
            raise DataError(f"{name!r} cannot name a data set: {mend}")
        if names.count(name) > 1:
            raise DataError(f"two data sets are named {name!r} after their files: rename one of the files")
