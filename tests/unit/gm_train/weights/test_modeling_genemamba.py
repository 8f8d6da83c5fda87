"""The self-contained file computes what the model computes, in a Python without the project."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gm_train.checkpoint.find import load_model
from gm_train.cli.main import main
from gm_train.config.schema import ModelConfig, TaskConfig
from gm_train.model.classes import Classes
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from gm_train.weights import modeling_genemamba
from gm_train.weights.exported_folder import file_names
from tests.support.checkpoints import GENES, run_isolated, write_checkpoint
from tests.support.small_models import (
    AGGREGATIONS,
    VOCABULARY,
    configs,
    pack,
    random_cells,
    random_model,
    relative_error,
    seeds,
    small_config,
)


def one_file(config: ModelConfig, model: GeneMamba) -> modeling_genemamba.GeneMamba:
    theirs = modeling_genemamba.GeneMamba(SimpleNamespace(**vars(config), vocab_size=VOCABULARY))
    theirs.to(model.embedding.weight.dtype).load_state_dict(file_names(model.state_dict()))
    return theirs.eval()


@settings(max_examples=40)
@given(
    config=configs.filter(lambda config: config.arch != "transformer"),
    lengths=st.lists(st.integers(1, 19), min_size=1, max_size=3),
    seed=seeds,
)
def test_it_computes_the_same_states_and_logits(config: ModelConfig, lengths: list[int], seed: int) -> None:
    input_ids, segment = pack([[cell] for cell in random_cells(lengths, seed)], tail=2)
    is_token = segment > 0
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        ours = random_model(config, seed, dtype)
        theirs = one_file(config, ours)
        with torch.no_grad():
            states, found = ours(input_ids, segment), theirs(input_ids, is_token)
            assert relative_error(found[is_token], states[is_token]) < tolerance
            assert relative_error(theirs.logits(found)[is_token], ours.logits(states)[is_token]) < tolerance
            embeddings = theirs.embed(input_ids, is_token)
        assert relative_error(embeddings, cell_embeddings(states, segment)) < tolerance


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_pads_on_either_side_and_other_cells_change_nothing(aggregation: str) -> None:
    config = small_config(aggregation=aggregation, norm="pre")
    model = one_file(config, random_model(config, seed=1))
    (cell,) = random_cells([9], seed=2)
    alone = model(cell[None])[0]
    rows = torch.zeros(2, 17, dtype=torch.int64)
    rows[0, 5:14] = cell
    rows[1] = random_cells([17], seed=3)[0]
    assert relative_error(model(rows)[0, 5:14], alone) < 1e-12
    # Without a mask, pads are found by their token.
    assert torch.equal(model(rows), model(rows, rows > 0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, Tensor, Tensor]:
    """An export, padded cells, and states and logits of the checkpoint's own model for them."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = write_checkpoint(folder / "checkpoint", gate_per_layer=True, norm="pre")
    assert main(["export", str(checkpoint.path), str(folder / "out")]) == 0
    model, _, _ = load_model(checkpoint)
    input_ids, segment = pack([[cell] for cell in random_cells([11, 4], seed=5)], tail=3)
    with torch.no_grad():
        states = model(input_ids, segment)
        return folder / "out", input_ids, states, model.logits(states)


def save(folder: Path, **tensors: Tensor) -> str:
    for name, tensor in tensors.items():
        torch.save(tensor, folder / name)
    return f"folder = {str(folder)!r}\n"


COMPARE = """
import torch
expected = {name: torch.load(folder + "/" + name, weights_only=True) for name in ("ids", "states", "logits")}
ids = expected["ids"]
def compare(name, found):
    print(name, float((found - expected[name])[ids > 0].abs().max() / expected[name].abs().max()))
"""


def differences(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+-]+)$", printed, re.MULTILINE)}


def test_with_torch_alone(exported: tuple[Path, Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    out, ids, states, logits = exported
    code = save(tmp_path, ids=ids, states=states, logits=logits) + COMPARE
    code += """
sys.modules["transformers"] = None
import modeling_genemamba
model = modeling_genemamba.load()
with torch.no_grad():
    found = model(ids)
    compare("states", found)
    compare("logits", model.logits(found))
"""
    found = differences(run_isolated(code, out, tmp_path))
    assert set(found) == {"states", "logits"}
    assert max(found.values()) < 1e-6


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed (bench)")
def test_with_transformers(exported: tuple[Path, Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    out, ids, states, logits = exported
    code = save(tmp_path, ids=ids, states=states, logits=logits) + COMPARE
    code += f"""
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
def load(kind, **options):
    return kind.from_pretrained({str(out)!r}, trust_remote_code=True, output_loading_info=True, **options)
base, problems = load(AutoModel)
assert not any(problems.values()), problems
masked, problems = load(AutoModelForMaskedLM)
assert not any(problems.values()), problems
classes, problems = load(AutoModelForSequenceClassification, num_labels=4)
assert problems["missing_keys"] == {{"classifier.layers.0.weight", "classifier.layers.0.bias"}}, problems
assert all(parameter.isfinite().all() for parameter in classes.parameters())
with torch.no_grad():
    compare("states", base(ids, attention_mask=ids > 0).last_hidden_state)
    compare("logits", masked(ids, attention_mask=ids > 0).logits)
labels = torch.where(ids > 0, ids, -100)
masked(ids, labels=labels).loss.backward()
assert masked.genemamba.embedding.weight.grad.abs().max() > 0
found = classes(ids, labels=torch.tensor([0, 3]))
assert found.logits.shape == (2, 4)
found.loss.backward()
classes.save_pretrained(folder + "/saved")
again = AutoModelForSequenceClassification.from_pretrained(folder + "/saved", trust_remote_code=True)
assert torch.equal(again(ids).logits, found.logits)
"""
    found = differences(run_isolated(code, out, tmp_path))
    assert set(found) == {"states", "logits"}
    assert max(found.values()) < 1e-6


def test_the_example_on_the_card_runs(exported: tuple[Path, Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    out = exported[0]
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    code = code.replace("'OUT'", repr(str(out))) + "\nprint(tuple(embeddings.shape), bool(embeddings.isfinite().all()))"
    assert run_isolated(code, out, tmp_path) == "(3, 12) True\n"
    assert f'= json.loads(open({str(out)!r} + "/vocabulary.json").read())["genes"]' in code
    assert len(GENES) > 16  # the example cuts a cell at top_k


def test_it_refuses_a_model_that_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="arch='transformer'"):
        modeling_genemamba.GeneMamba(SimpleNamespace(**vars(small_config(arch="transformer")), vocab_size=5))


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, Tensor]:
    """The export of a model with a classifier, padded cells, and its logits for them."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    classes = Classes("kind", ("a", "b", "c"), (9, 4, 5))
    task = TaskConfig("classify", "kind", head_layers=3, head_width=7)
    checkpoint = write_checkpoint(folder / "checkpoint", classes=classes, task=task)
    assert main(["export", str(checkpoint.path), str(folder / "out")]) == 0
    model, _, _ = load_model(checkpoint)
    input_ids, segment = pack([[cell] for cell in random_cells([11, 4], seed=5)], tail=3)
    with torch.no_grad():
        return folder / "out", input_ids, model.class_logits(cell_embeddings(model(input_ids, segment), segment))


def test_a_classifier_with_torch_alone(fine_tuned: tuple[Path, Tensor, Tensor], tmp_path: Path) -> None:
    out, ids, logits = fine_tuned
    code = save(tmp_path, ids=ids, logits=logits)
    code += """
sys.modules["transformers"] = None
import torch, modeling_genemamba
ids, logits = (torch.load(folder + "/" + name, weights_only=True) for name in ("ids", "logits"))
model = modeling_genemamba.load()
print(model.classes)
with torch.no_grad():
    print("logits", float((model.class_logits(ids) - logits).abs().max() / logits.abs().max()))
"""
    printed = run_isolated(code, out, tmp_path)
    assert "['a', 'b', 'c']" in printed
    assert differences(printed)["logits"] < 1e-6


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed (bench)")
def test_a_classifier_with_transformers(fine_tuned: tuple[Path, Tensor, Tensor], tmp_path: Path) -> None:
    out, ids, logits = fine_tuned
    code = save(tmp_path, ids=ids, logits=logits)
    code += f"""
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
ids, logits = (torch.load(folder + "/" + name, weights_only=True) for name in ("ids", "logits"))
def load(kind):
    model, info = kind.from_pretrained({str(out)!r}, trust_remote_code=True, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()
load(AutoModelForMaskedLM)
model = load(AutoModelForSequenceClassification)
print(list(model.config.id2label.values()))
with torch.no_grad():
    print("logits", float((model(ids).logits - logits).abs().max() / logits.abs().max()))
"""
    printed = run_isolated(code, out, tmp_path)
    assert "['a', 'b', 'c']" in printed
    assert differences(printed)["logits"] < 1e-6


def test_weights_without_a_classifier_have_no_classes(exported: tuple[Path, Tensor, Tensor, Tensor]) -> None:
    model = modeling_genemamba.load(exported[0])
    assert model.classes == []
    with pytest.raises(ValueError, match="not fine-tuned for a label"):
        model.class_logits(exported[1])
