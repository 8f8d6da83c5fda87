"""Check the names of data sets, which come from the names of their files."""

from collections.abc import Sequence
from pathlib import Path

from data_shards.errors import DataError


def check_names(names: Sequence[str], fix: str = "rename the file") -> None:
    """Raise DataError for duplicate names, and for names that cannot name a group or a subfolder of the store.

    Args:
        names: names of the data sets.
        fix: advice on how to get another name, for the message.
    """
    for name in names:
        is_path = name != Path(name).name or "\\" in name or "\0" in name
        if is_path or name.startswith((".", "__")) or not name or name.endswith((".json", ".npy", ".parquet")):
            raise DataError(f"{name!r} cannot name a data set: {fix}")
        if names.count(name) > 1:
            raise DataError(f"two data sets are named {name!r} after their files: rename one of the files")
