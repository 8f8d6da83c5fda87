"""Convert what readers raise for damaged files into one kind of error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import DataError


@contextmanager
def as_data_errors(path: Path) -> Iterator[None]:
    """Convert what h5py, zarr and anndata raise for damaged files into DataError."""
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(
            f"{path}: not as anndata writes it, or damaged ({error}): write it again with anndata"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        # HDF5's phrases for a filter that is not installed; "filter returned failure" means damage.
        if any(words in str(error) for words in ("is not registered", "Please verify its existence")):
            raise DataError(
                f"{path}: compressed with a filter that is not installed ({error}): pip install hdf5plugin, "
                "or write it again with gzip"
            ) from error
        raise DataError(f"{path}: cannot be read ({error}): truncated or damaged, fetch it again") from error
