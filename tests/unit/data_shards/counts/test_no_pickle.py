"""An AnnData-Zarr that names pickle among its codecs is refused, and nothing of the pickle runs."""

import json
import os
import pickle
from pathlib import Path

import anndata as ad
import pytest

from data_shards.counts.count_file import open_counts
from data_shards.errors import DataError
from tests.support.count_files import draw_counts


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def read(path: Path) -> None:
    with open_counts(path) as counts:
        list(counts.chunks())
        counts.read_obs()
        assert counts.gene_names


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
@pytest.mark.parametrize("codec", ["filters", "compressor"])
@pytest.mark.parametrize("array", ["X/data", "X/indices", "obs/_index", "var/_index"])
def test_pickle_as_a_codec(tmp_path: Path, array: str, codec: str) -> None:
    path, ran = tmp_path / "cells.zarr", tmp_path / "ran"
    with ad.settings.override(zarr_write_format=2):
        ad.AnnData(draw_counts(6, 5)).write_zarr(path)
    (path / ".zmetadata").unlink(missing_ok=True)
    about = json.loads((path / array / ".zarray").read_text())
    pickling = {"id": "pickle", "protocol": 5}
    about |= {"filters": [pickling], "compressor": None} if codec == "filters" else {"compressor": pickling}
    (path / array / ".zarray").write_text(json.dumps(about))
    (path / array / "0").write_bytes(pickle.dumps(Touch(ran)))
    with pytest.raises(DataError, match=r"cells\.zarr: .*pickle"):
        read(path)
    assert not ran.exists()
    # The pickle would have run.
    pickle.loads((path / array / "0").read_bytes())
    assert ran.exists()
