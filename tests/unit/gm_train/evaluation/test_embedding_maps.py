"""Maps of embeddings: every cell, type and batch is drawn; they are UMAPs, or t-SNE without umap-learn."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gm_train.evaluation import embedding_maps
from gm_train.evaluation.embedding_maps import MAX_COLOURED, Colouring, draw_maps
from tests.support.integration_cases import clusters


def draw(colourings: list[Colouring], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Draw the maps of one embedding; their figures."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, path: Path, **settings: object) -> None:
        figures.append(figure)
        save(figure, path, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    features, *_ = clusters(4, 3, 10, 2.0)
    paths = draw_maps({"the model": features, "PCA": features[:, :3]}, colourings, folder, "map")
    names = ["map-1", "map-1-2", "map-2", "map-2-2"] if len(colourings) == 2 else ["map-1", "map-2"]
    assert [path.stem for path in paths] == names
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert height > width > 600
    return figures


def axis_of(figure: Figure) -> Axes:
    return figure.axes[0]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_types_are_numbered_and_batches_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, types, batches = clusters(4, 3, 10, 2.0)
    types[0] = None
    figures = draw([Colouring("type", types, True), Colouring("donor", batches, False)], tmp_path, monkeypatch)
    by_type, by_batch = figures[:2]
    assert legend_of(by_type) == ["1  type 1", "2  type 2", "3  type 3", "4  type 0", "5  (none)"]
    assert [text.get_text() for text in axis_of(by_type).texts] == ["1", "2", "3", "4", "5"]
    assert legend_of(by_batch) == ["batch 0", "batch 1", "batch 2"]
    assert not axis_of(by_batch).texts
    assert axis_of(by_batch).get_title() == "the model\nby donor"
    places = [np.asarray(axis_of(figure).collections[0].get_offsets()) for figure in (by_type, by_batch)]
    assert len(places[0]) == 120
    assert np.array_equal(*places)


def test_cells_of_a_type_are_near_each_other_and_have_its_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, types, _ = clusters(4, 3, 10, 2.0)
    figure = draw([Colouring("type", types, True)], tmp_path, monkeypatch)[0]
    points = axis_of(figure).collections[0]
    places, colours = np.asarray(points.get_offsets()), [tuple(colour) for colour in points.get_facecolor()]
    assert sorted(colours.count(colour) for colour in set(colours)) == [30] * 4
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag([np.inf] * len(places))
    same = [colours[i] == colours[nearest] for i, nearest in enumerate(distances.argmin(1))]
    assert np.mean(same) > 0.95


def test_many_types_share_the_last_colour_and_long_names_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = np.array([f"a very long name of a cell type, number {i % 60:02d}" for i in range(120)], object)
    many[0] = many[60] = many[1] = f"{61 - MAX_COLOURED} others"
    figure = draw([Colouring("type", many, True)], tmp_path, monkeypatch)[0]
    names = legend_of(figure)
    assert len(names) == MAX_COLOURED
    assert names[0] == "1  21 others"
    assert names[1] == "2  a very long … number 02"
    assert names[-1] == f"{MAX_COLOURED}  {60 - MAX_COLOURED + 1} others"
    colours = {tuple(colour) for colour in axis_of(figure).collections[0].get_facecolor()}
    assert len(colours) == MAX_COLOURED
    assert len(axis_of(figure).texts) == MAX_COLOURED - 1


def test_dollars_in_names_are_shown_and_are_no_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two dollars matplotlib reads a formula, and fails at what is none."""
    name = "CD4$^$ T $\\x$"
    types = np.array([name, "B"] * 60, object)
    figure = draw([Colouring("$a$_$b$", types, False)], tmp_path, monkeypatch)[0]
    legend = figure.legends[0].get_texts()
    shown = [text._preprocess_math(text.get_text()) for text in (*legend, axis_of(figure).title)]
    assert shown == [("B", False), (name, False), ("the model\nby $a$_$b$", False)]


def test_without_umap_learn_maps_are_t_sne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, types, _ = clusters(4, 3, 10, 2.0)
    colourings = [Colouring("type", types, True)]
    if embedding_maps.has_umap():
        assert axis_of(draw(colourings, tmp_path, monkeypatch)[0]).get_xlabel() == "UMAP 1"
    monkeypatch.setattr(embedding_maps, "has_umap", lambda: False)
    assert axis_of(draw(colourings, tmp_path, monkeypatch)[0]).get_xlabel() == "t-SNE 1"


@pytest.mark.parametrize(
    "features", [np.ones((30, 4)), np.arange(20)[:, None], np.eye(5), np.eye(2)[np.arange(40) % 2]]
)
def test_equal_narrow_and_few_vectors_are_drawn(features: np.ndarray, tmp_path: Path) -> None:
    names = np.array([f"{i % 2}" for i in range(len(features))], object)
    (path,) = draw_maps({"theirs": features.astype(np.float32)}, [Colouring("type", names, True)], tmp_path, "map")
    assert path.read_bytes().startswith(b"\x89PNG")
