"""Definitions: what is refused and how, and that every one that is shipped can be run."""

from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError, OptionError
from data_shards.simulate.atlas_options import AtlasOptions
from gm_train.ablation.definition import ATLAS, DATA, FOLDER, PBMC
from gm_train.ablation.definition_file import find_definition, read_definition
from gm_train.ablation.planned_runs import PROGRAMMES, plan_runs
from tests.support.tiny_ablations import write_definition

SHIPPED = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_ablations_resolve_to_valid_settings(path: Path) -> None:
    definition = read_definition(path)
    runs = plan_runs(path, definition)
    assert len(runs) == len(definition.variants) * len(definition.seeds)
    assert len({run.name for run in runs}) == len(runs)
    assert len(definition.seeds) >= 3
    for run in runs:
        assert not any(word.startswith("store.") for word in run.words)
        # Values beyond top_k would not fit a row.
        assert run.store.top_k <= run.config(Path("r"), Path("s"), Path("c")).data.row_length


def test_every_ablation_of_the_atlas_has_the_same_cells() -> None:
    # The question of regulation needs an atlas of its own.
    usual = [path for path in SHIPPED if path.stem != "direction-of-regulation"]
    of_atlas = [one for one in map(read_definition, usual) if one.cells.source == ATLAS]
    assert len(of_atlas) > 1
    assert len({AtlasOptions(**one.cells.atlas) for one in of_atlas}) == 1
    assert {one.cells.source for one in map(read_definition, SHIPPED)} == {ATLAS, PBMC, DATA}


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({"colour": "red"}, (), "unknown key colour: there are question, cells, base, variants"),
        ({"split.share": 0.1}, (), "unknown key share of split: there are by, validation, test, every_seed, seed"),
        ({"cells.atlas": {"cell": 3}}, (), "unknown key cell of cells.atlas: there are cells, genes"),
        ({}, ("variants",), "lacks variants"),
        ({"variants": {}}, (), "variants is empty"),
        ({"variants": {"a b": []}}, (), "variants: a b: a name begins with"),
        ({"variants": {"masked": "optim.lr=1"}}, (), "variants.masked: 'optim.lr=1' is not a list of words"),
        ({"base": [{"optim": 1}]}, (), "base: .* is not a list of words"),
        ({"variants": ["masked"]}, (), r"variants: expected keys and values, found \['masked'\]"),
        ({"variants": {True: []}}, (), "variants: True is no text in YAML: put it in quotes"),
        ({"variants": {"a": [], 40: []}}, (), "variants: 40 is no text in YAML: put it in quotes"),
        ({"compare": {"missing": "other"}}, (), "compare: other: no such variant: there are masked, missing"),
        ({"compare": {"other": "masked"}}, (), "compare: other: no such variant"),
        ({"compare": {"missing": ["masked"]}}, (), "compare: .*no such variant"),
        ({"compare": {"missing": "missing"}}, (), "compare: missing is compared with itself"),
        ({"compare": ["missing"]}, (), "compare: expected keys and values"),
        ({"scoring.tasks": []}, (), "scoring.tasks is empty"),
        ({"scoring.tasks": ["masked", "regulation"]}, (), r"regulation needs scoring.regulation: .* \$regulation"),
        ({"scoring.regulation": "pairs.tsv"}, (), "only the task regulation takes a table"),
        (
            {"scoring.tasks": ["regulation"], "scoring.regulation": "$regulation"},
            (),
            "needs a simulated atlas with cells.atlas.regulators above 0",
        ),
        ({"scoring.tasks": ["probes"], "scoring.label": ""}, (), "probes needs scoring.label"),
        ({"scoring.tasks": ["masked,robustness"], "scoring.label": ""}, (), "robustness needs scoring.label"),
        ({"scoring.tasks": ["integration"], "scoring.batch": ""}, (), "integration needs scoring.batch"),
        ({"scoring.label": "", "scoring.batch": "donor_id"}, (), "scoring.batch needs scoring.label"),
        ({"scoring.max_cells": 0}, (), "scoring.max_cells=0: must be at least 1"),
        ({"scoring.mask_seeds": 0}, (), "scoring.mask_seeds=0: must be at least 1"),
        ({"question": " "}, (), "question is empty"),
        ({"cells.source": "web"}, (), "cells.source='web': expected one of pbmc, atlas, data"),
        ({"cells.source": "data"}, (), "cells.atlas and cells.parts need cells.source: atlas"),
        ({"cells.reading": {"raw": True}}, (), "cells.reading needs cells.source: data"),
        ({"cells.parts": [0.5, 0.4]}, (), "must add up to 1"),
        ({"cells.atlas": {"cells": 0}}, (), "cells.atlas: --cells 0: must be at least 1"),
        ({"cells.atlas": {"cells": "many"}}, (), "cells.atlas: "),
        ({"split.by": "dataset"}, (), "split.by='dataset': expected donor or cell"),
        ({"split.test": 0.0}, (), "test must be above 0"),
        ({"split.test": "much"}, (), "split: .*'much'"),
        ({"seeds": [1, 1]}, (), "different whole numbers"),
        ({"seeds": []}, (), "different whole numbers"),
        ({"seeds": "1"}, (), "different whole numbers"),
        ({"scoring.tasks": ["magic"]}, (), "scoring.tasks: .*magic: no such task"),
        ({"variants": {"a": ["model.d_modle=1"]}}, (), "(?s)variant a: .*unknown key model.d_modle"),
        ({"variants": {"a": ["store.colour=1"]}}, (), "variant a: unknown key store.colour: there are top_k"),
        ({"variants": {"a": ["store.top_k=many"]}}, (), "variant a: store.top_k=many: expected int"),
        ({"base": ["nowhere.yaml"]}, (), "nowhere.yaml: cannot be read"),
        ({"cells": {"source": "pbmc"}}, (), f"{PROGRAMMES[1:]} and .* are files of a simulated atlas"),
    ],
)
def test_what_cannot_work_is_named_with_its_file(
    tmp_path: Path, changes: dict[str, Any], without: tuple[str, ...], message: str
) -> None:
    path = write_definition(tmp_path, changes, without)
    with pytest.raises(DataError, match=message) as caught:
        plan_runs(path, read_definition(path))
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("question: [")
    with pytest.raises(DataError, match=r"bad\.yaml: cannot be read"):
        read_definition(path)
    path.write_text("just text")
    with pytest.raises(DataError, match=r"bad\.yaml: the file: expected keys and values"):
        read_definition(path)


def test_an_unknown_ablation_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"objective: no such ablation: there are .*objectives-blood"):
        find_definition("objective")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="there is no folder configs/ablations here"):
        find_definition("objectives-blood")


def test_runs_come_seed_by_seed_and_some_can_be_chosen(tmp_path: Path) -> None:
    path = write_definition(tmp_path, {"split.every_seed": True})
    definition = read_definition(path)
    runs = plan_runs(path, definition)
    assert [run.name for run in runs[:3]] == ["masked-seed0", "missing-seed0", "masked-seed1"]
    assert [run.split_seed for run in runs] == [0, 0, 1, 1, 2, 2]
    fixed = write_definition(tmp_path, {"split.seed": 7})
    assert {run.split_seed for run in plan_runs(fixed, read_definition(fixed))} == {7}
    assert [run.name for run in plan_runs(path, definition, ["missing"], [2])] == ["missing-seed2"]
    with pytest.raises(OptionError, match=r"--variants other: not in .*: there are masked, missing"):
        plan_runs(path, definition, ["other"])
    with pytest.raises(OptionError, match=r"--seeds 7: not in .*: there are 0, 1, 2"):
        plan_runs(path, definition, [], [7])


def test_a_variant_changes_settings_and_the_store(tmp_path: Path) -> None:
    words = ["optim.lr=0.5", "store.dither=true", "store.top_k=32"]
    path = write_definition(tmp_path, {"variants": {"a": [], "b": words}})
    a, b, *_ = plan_runs(path, read_definition(path))
    assert (a.store.top_k, a.store.dither) == (64, False)
    assert (b.store.top_k, b.store.dither) == (32, True)
    config = b.config(tmp_path / "run", tmp_path / "store.zarr", tmp_path / "cells")
    assert (config.optim.lr, config.run.seed, config.run.dir) == (0.5, 0, str(tmp_path / "run"))
    assert config.objective.pathways == str(tmp_path / "cells" / "atlas.gmt")
    assert a.config(Path("r"), Path("s"), Path("c")).optim.lr == 1e-3


def test_the_page_lists_every_ablation_and_its_example_can_be_run(tmp_path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "ablations.md").read_text()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 4]
    assert {path.stem for path in SHIPPED} <= set(listed)
    (tmp_path / "example.yaml").write_text(page.split("```yaml")[1].split("```")[0])
    definition = read_definition(tmp_path / "example.yaml")
    assert len(plan_runs(tmp_path / "example.yaml", definition)) == 9
