"""Weights in the published layout: computed by a plain recurrence of its own, and taken in.

The reference below follows the formulas of Mamba-2 (arXiv 2405.21060) and of GeneMamba (arXiv 2504.16956) with numpy in
float64, token by token, under the published names. It shares no code with the project.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.cli.main import main

F64 = npt.NDArray[np.float64]
Weights = dict[str, F64]

D_MODEL, LAYERS, D_STATE, TAPS, HEADS, HEAD_DIM = 6, 3, 5, 4, 3, 4
INNER = HEADS * HEAD_DIM
#: Rows are in no order of the ids. Names in brackets are special, one gene has no median, one name is no gene.
NAMES = [
    "[UNK]", "[PAD]", "ENSG00000000009", "ENSG00000000003", "[MASK]", "ENSG00000000007", "ENSG00000000001",
    "ENSG00000000005", "[CLS]", "ENSG00000000004", "NOT-A-GENE",
]  # fmt: skip
NO_MEDIAN = "ENSG00000000004"


def random_weights(seed: int, projection: bool) -> Weights:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.5) -> F64:
        return scale * rng.standard_normal(shape)

    weights = {
        "embeddings.weight": normal(len(NAMES), D_MODEL, scale=1.0),
        "norm_f.weight": 1 + normal(D_MODEL, scale=0.1),
        "lm_head.weight": normal(len(NAMES), D_MODEL),
        "lm_head.bias": normal(len(NAMES)),
    }
    if projection:
        weights |= {"mamba_mixer.aggr.weight": normal(D_MODEL, 2 * D_MODEL), "mamba_mixer.aggr.bias": normal(D_MODEL)}
    for i in range(LAYERS):
        at = f"mamba_mixer.layers.{i}.mamba."
        channels = INNER + 2 * D_STATE
        weights |= {
            at + "in_proj.weight": normal(INNER + channels + HEADS, D_MODEL),
            at + "conv1d.weight": normal(channels, 1, TAPS),
            at + "conv1d.bias": normal(channels),
            at + "dt_bias": normal(HEADS),
            at + "A_log": normal(HEADS),
            at + "D": normal(HEADS),
            at + "norm.weight": 1 + normal(INNER, scale=0.1),
            at + "out_proj.weight": normal(D_MODEL, INNER),
        }
    # As float32 holds them, so that files lose nothing.
    return {name: value.astype(np.float32).astype(np.float64) for name, value in weights.items()}


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def mamba(u: F64, w: Weights, at: str) -> F64:
    """One Mamba-2 over the tokens u, (length, d_model)."""
    columns = u @ w[at + "in_proj.weight"].T
    z, xbc, dt = columns[:, :INNER], columns[:, INNER:-HEADS], columns[:, -HEADS:]
    taps, bias = w[at + "conv1d.weight"][:, 0], w[at + "conv1d.bias"]
    dt = np.log1p(np.exp(dt + w[at + "dt_bias"]))
    a = -np.exp(w[at + "A_log"])
    state = np.zeros((HEADS, HEAD_DIM, D_STATE))
    rows = []
    for t in range(len(u)):
        filtered = bias.copy()
        for k in range(min(TAPS, t + 1)):
            filtered += taps[:, TAPS - 1 - k] * xbc[t - k]
        filtered *= sigmoid(filtered)
        x, b, c = filtered[:INNER].reshape(HEADS, HEAD_DIM), filtered[INNER:-D_STATE], filtered[-D_STATE:]
        for head in range(HEADS):
            state[head] = np.exp(dt[t, head] * a[head]) * state[head] + dt[t, head] * np.outer(x[head], b)
        y = (state @ c + w[at + "D"][:, None] * x).reshape(INNER) * z[t] * sigmoid(z[t])
        y = y / np.sqrt(np.mean(y**2) + 1e-5) * w[at + "norm.weight"]
        rows.append(w[at + "out_proj.weight"] @ y)
    return np.stack(rows)


def published(tokens: list[int], w: Weights, mode: str) -> tuple[F64, F64]:
    """Final states and logits of one cell."""
    x = w["embeddings.weight"][tokens]
    for i in range(LAYERS):
        at = f"mamba_mixer.layers.{i}.mamba."
        f = mamba(x, w, at) + x
        b = (mamba(x[::-1], w, at) + x[::-1])[::-1]
        if mode == "mean":
            x = (f + b) / 2
        elif mode == "sum":
            x = f + b
        else:
            joined = np.concatenate([f, b], axis=1) @ w["mamba_mixer.aggr.weight"].T + w["mamba_mixer.aggr.bias"]
            x = joined if mode == "concat" else sigmoid(joined) * f + (1 - sigmoid(joined)) * b
    states = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * w["norm_f.weight"]
    return states, states @ w["lm_head.weight"].T + w["lm_head.bias"]


def write(folder: Path, weights: Weights, mode: str | None = "gate", prefix: str = "", suffix: str = "") -> Path:
    """Write weights, their configuration and their dictionaries as somebody else would."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {prefix + name: torch.from_numpy(value).float() for name, value in weights.items()}
    if suffix == ".bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    if mode:
        (folder / "config.json").write_text(json.dumps({"mode": mode, "mamba_layer": LAYERS}))
    tokens = {name: row for row, name in enumerate(NAMES)}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    medians = {name: 0.1 + row / 3 for name, row in tokens.items() if name.startswith("ENSG") and name != NO_MEDIAN}
    (folder / "medians_of_genes.json").write_text(json.dumps(medians))
    return folder


def options(folder: Path) -> list[str]:
    return ["--vocabulary", str(folder / "tokens.json"), "--medians", str(folder / "medians_of_genes.json")]


def take_in(folder: Path, out: Path, *words: str) -> Any:
    assert main(["import", str(folder), str(out), *options(folder), *words]) == 0
    return load_model(open_checkpoint(out))


@pytest.mark.parametrize("mode", ["gate", "concat", "mean", "sum"])
def test_an_imported_model_computes_what_the_published_one_does(tmp_path: Path, mode: str) -> None:
    weights = random_weights(3, projection=mode in ("gate", "concat"))
    model, tokenizer, config = take_in(write(tmp_path / "in", weights, mode), tmp_path / "out")
    assert (config.model.aggregation, config.model.norm) == (mode, "none")
    sizes = config.model
    found = sizes.d_model, sizes.n_layers, sizes.d_state, sizes.d_conv, sizes.expand, sizes.head_dim
    assert found == (D_MODEL, LAYERS, D_STATE, TAPS, INNER // D_MODEL, HEAD_DIM)
    genes = [name for name in NAMES if name.startswith("ENSG") and name != NO_MEDIAN]
    assert list(tokenizer.vocabulary.genes) == sorted(genes)
    # The same cell, in tokens of each vocabulary.
    cell = ["ENSG00000000007", "ENSG00000000001", "ENSG00000000009", "[MASK]", "ENSG00000000005", "ENSG00000000003"]
    theirs = [NAMES.index(name) for name in cell]
    token_of = tokenizer.vocabulary.token_of | {"[MASK]": 1, "[PAD]": 0}
    ours = torch.tensor([[token_of[name] for name in cell]])
    states, logits = published(theirs, weights, mode)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        model.to(dtype)
        with torch.no_grad():
            own = model(ours, torch.ones_like(ours))
            own_logits = model.logits(own)[0]
        assert np.abs(own[0].numpy() - states).max() < tolerance * np.abs(states).max()
        columns = [NAMES.index(gene) for gene in tokenizer.vocabulary.genes]
        expected = logits[:, [NAMES.index("[PAD]"), NAMES.index("[MASK]"), *columns]]
        assert np.abs(own_logits.numpy() - expected).max() < tolerance * np.abs(expected).max()


def test_every_number_comes_back_in_the_published_layout(tmp_path: Path) -> None:
    weights = random_weights(4, projection=True)
    take_in(write(tmp_path / "in", weights), tmp_path / "out")
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "again"), "--format", "published"]) == 0
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == weights.keys()
    tokens = json.loads((tmp_path / "again" / "token_dictionary.json").read_text())
    rows = [NAMES.index({"<pad>": "[PAD]", "<mask>": "[MASK]"}.get(name, name)) for name in tokens]
    assert tokens["<pad>"] == 1
    assert list(tokens.values()) == list(range(len(tokens)))
    for name, value in weights.items():
        expected = value[rows] if name in ("embeddings.weight", "lm_head.weight", "lm_head.bias") else value
        assert np.array_equal(found[name].numpy(), expected)


def test_prefixes_torch_files_and_narrow_types_are_read(tmp_path: Path) -> None:
    weights = random_weights(5, projection=True)
    rounded = {name: torch.from_numpy(value).bfloat16() for name, value in weights.items()}
    plain = {name: tensor.double().numpy() for name, tensor in rounded.items()}
    expected = hash_weights(take_in(write(tmp_path / "plain", plain), tmp_path / "a")[0].state_dict())
    other = write(tmp_path / "other", plain, prefix="genemamba.", suffix=".bin")
    torch.save({f"genemamba.{name}": tensor for name, tensor in rounded.items()}, other / "pytorch_model.bin")
    assert hash_weights(take_in(other, tmp_path / "b")[0].state_dict()) == expected
    tokenizer = {"model": {"vocab": {name: row for row, name in enumerate(NAMES) if name != "[MASK]"}}}
    tokenizer["added_tokens"] = [{"content": "[MASK]", "id": NAMES.index("[MASK]")}]  # type: ignore[assignment]
    (other / "tokens.json").write_text(json.dumps(tokenizer))
    assert hash_weights(take_in(other, tmp_path / "c")[0].state_dict()) == expected


def test_what_is_left_out_or_made_up_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(6, projection=True) | {"classifier.weight": np.ones((2, D_MODEL))}
    folder = write(tmp_path / "in", weights)
    tokens = {name: row for row, name in enumerate(NAMES) if name not in ("[MASK]", "[PAD]")}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    model, tokenizer, _ = take_in(folder, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "left out 1 tensors that are not of the model: classifier.weight" in printed
    assert "left out 1 genes without a median" in printed
    assert "NOT-A-GENE, [CLS], [UNK]" in printed
    assert "has no mask token; <mask> gets the mean of the genes" in printed
    embedding = model.embedding.weight.detach()
    mean = embedding[FIRST_GENE:].double().mean(0).float()
    assert torch.equal(embedding[1], mean)
    # No name says where the pad is: the published code has it at 1.
    assert torch.equal(embedding[0], torch.from_numpy(weights["embeddings.weight"][1]).float())
    # Raw counts are ranked with medians of 1, and then every gene has one.
    words = ["import", str(folder), str(tmp_path / "raw"), "--vocabulary", str(folder / "tokens.json")]
    assert main([*words, "--medians", "none"]) == 0
    _, raw, _ = load_model(open_checkpoint(tmp_path / "raw"))
    assert len(raw.vocabulary.genes) == len(tokenizer.vocabulary.genes) + 1
    assert set(raw.medians) == {1.0}


def broken(weights: Weights, name: str, value: F64 | None) -> Weights:
    return {key: tensor for key, tensor in weights.items() if key != name} | ({} if value is None else {name: value})


LAYER = "mamba_mixer.layers.1.mamba."


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("norm_f.weight", None, "norm_f.weight missing"),
        (LAYER + "A_log", None, f"{LAYER}A_log missing"),
        ("mamba_mixer.aggr.bias", None, "mamba_mixer.aggr.bias missing"),
        (LAYER + "in_proj.bias", np.ones(3), f"{LAYER}in_proj.bias is not part of the layout"),
        (LAYER + "D", np.ones(INNER), "stack.layers.1.mixer.D has the shape (12,)"),
        ("mamba_mixer.layers.0.mamba.dt_bias", np.ones(5), "do not fit a Mamba-2 with one group"),
        ("lm_head.weight", np.ones((3, D_MODEL)), "they do not belong together"),
        ("lm_head.bias", np.full(len(NAMES), np.nan), "lm_head.bias has NaN or infinity"),
        ("model.norm_f.weight", np.ones(D_MODEL), "norm_f.weight occurs twice"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: F64 | None, reason: str
) -> None:
    folder = write(tmp_path / "in", broken(random_weights(7, projection=True), name, value))
    assert main(["import", str(folder), str(tmp_path / "out"), *options(folder)]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_weights_do_not_say_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["import", str(folder), str(tmp_path / "out"), *words]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    folder = write(tmp_path / "in", random_weights(8, projection=True), mode=None)
    assert "the shapes fit gate and concat; say which one with --aggregation gate" in refused(*options(folder))
    assert "--aggregation mean: the shapes fit gate" in refused(*options(folder), "--aggregation", "mean")
    assert "need --vocabulary and --medians" in refused("--aggregation", "gate")
    assert "need --medians" in refused(*options(folder)[:2], "--aggregation", "gate")
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read" in refused(*options(folder))
    (folder / "config.json").unlink()
    named = ["--aggregation", "concat"]
    tokens = {"ENSG00000000001": len(NAMES)}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    assert "has the token 11, the weights have 11 rows" in refused(*options(folder), *named)
    (folder / "tokens.json").write_text(json.dumps({"ENSG00000000777": 3}))
    assert "none of its 1 names is a gene with a median" in refused(*options(folder), *named)
    (folder / "tokens.json").write_text(json.dumps({"model": {"vocab": {"ENSG00000000001": -1}}}))
    assert "not whole numbers" in refused(*options(folder), *named)
    (folder / "tokens.pkl").write_bytes(b"")
    assert "is a pickle" in refused("--vocabulary", str(folder / "tokens.pkl"), "--medians", "none", *named)
