"""The model card of an export: what the weights are, what they were trained on, and how well they did."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.location import location_of
from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import Checkpoint
from gm_train.checkpoint.known_cells import kept_manifest
from gm_train.checkpoint.state import hash_weights
from gm_train.evaluation.score_table import label_table, render_markdown
from gm_train.model.classes import Classes
from gm_train.run.records import METRICS, read_rows
from gm_train.weights.exported_folder import CODE, FILES, Exported
from gm_train.weights.published_vocabulary import MEDIANS, TOKENS
from gm_train.weights.weight_files import WEIGHTS

log = logging.getLogger(__name__)

_EVALUATION, _ANNOTATION = "eval/eval.json", "annotation.json"
#: Packages whose versions the card names.
_PACKAGES = ("gm-train", "torch", "lightning", "mamba-ssm", "deepspeed")

_USE = """\
```python
import numpy as np
import torch
from modeling_genemamba import load

model = load({folder!r})
genes = json.loads(open({folder!r} + "/vocabulary.json").read())["genes"]
medians = np.load({folder!r} + "/medians.npy")
counts = np.random.default_rng(0).poisson(1.0, (3, len(genes)))  # yours: cells by these genes, raw counts
ids = torch.zeros(3, {top_k}, dtype=torch.int64)
for cell, row in zip(counts, ids):
    order = np.argsort(-cell / medians, kind="stable")[: min({top_k}, np.count_nonzero(cell))]
    row[: len(order)] = torch.from_numpy(order + 2)
with torch.no_grad():
    embeddings = model.embed(ids, ids > 0)  # (cells, {d_model})
```
"""


@dataclass(frozen=True)
class CardFacts:
    """What the card says beside the settings.

    Attributes:
        n_parameters: number of weights.
        weights_hash: hash of the weights.
        tokens: tokens that the run was trained on; None if its records do not reach this step.
        manifest: of the store that the model was trained on; None if it cannot be read.
        no_manifest: why not.
        evaluation: results of `gm-train eval` of this checkpoint; None if there are none.
        no_evaluation: why not.
        annotation: what `gm-train annotate` wrote about this checkpoint; None if it wrote nothing.
        start: entry of `environment.json` for the start that wrote the checkpoint; None if there is none.
        license: as given; may be empty.
    """

    n_parameters: int
    weights_hash: str
    tokens: int | None
    manifest: Manifest | None
    no_manifest: str
    evaluation: dict[str, Any] | None
    no_evaluation: str
    annotation: dict[str, Any] | None
    start: dict[str, Any] | None
    license: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, exported: Exported, store: str, license: str) -> "CardFacts":
        """Collect the facts from the run's records and the store; what cannot be read is left out and said so.

        Args:
            checkpoint: the checkpoint that is exported.
            exported: what it holds.
            store: where the store should be; may be empty.
            license: as the user gives it.
        """
        run = checkpoint.path.resolve().parent.parent
        if checkpoint.path.resolve().parent.name != "checkpoints":
            run = checkpoint.path / "no run"
        manifest, no_manifest = _manifest(checkpoint, store, exported.store_hash)
        evaluation, no_evaluation = _evaluation(run / _EVALUATION, checkpoint)
        return cls(
            sum(tensor.numel() for tensor in exported.state.values()),
            hash_weights(exported.state),
            _tokens(run / METRICS, checkpoint.step),
            manifest,
            no_manifest,
            evaluation,
            no_evaluation,
            _annotation(run / _ANNOTATION, checkpoint) if exported.classes is not None else None,
            _start(run / "environment.json", checkpoint.step),
            license,
        )


def _manifest(checkpoint: Checkpoint, store: str, expected: str) -> tuple[Manifest | None, str]:
    if not expected:
        return None, "Nothing is known about the cells that these weights were trained on."
    kept = kept_manifest(checkpoint.path)
    if kept is not None:
        return kept, ""
    if not store:
        return None, "The store was not named (`--store`), so its data sets cannot be listed."
    try:
        manifest = Manifest.load(location_of(store))
    except DataError as error:
        log.warning("the card cannot list the data sets: %s", error)
        return None, "The store could not be read when this card was written, so its data sets cannot be listed."
    own = manifest if manifest.hash == expected else manifest.before_adding(expected)
    if own is None:
        log.warning("%s: not the store that the model was trained on, so the card cannot list its data sets", store)
        return None, "The store at hand was another one when this card was written, so its data sets cannot be listed."
    return own, ""


def _evaluation(path: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, str]:
    if not path.is_file():
        return None, "This checkpoint was not scored (`gm-train eval`)."
    try:
        results = dict(json.loads(path.read_text()))
        scored = results["checkpoint"]
        # The path is of this machine.
        results["checkpoint"] = scored | {"path": checkpoint.path.name}
        render_markdown(results)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: cannot be used for the card (%s: %s)", path, type(error).__name__, error)
        return None, "The run's evaluation does not say which checkpoint it scored, so its scores are not shown."
    if scored["hash"] != checkpoint.hash:
        step = f"{scored['step']:,}"
        return None, f"The run's evaluation scored step {step}, not these weights, so its scores are not shown."
    return results, ""


def _annotation(path: Path, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The scores that `gm-train annotate` wrote, if they are of this checkpoint."""
    if not path.is_file():
        return None
    results = dict(json.loads(path.read_text()))
    return results if Path(results["checkpoint"]["path"]).name == checkpoint.path.name else None


def _tokens(path: Path, step: int) -> int | None:
    try:
        rows = read_rows(path)
    except DataError as error:
        log.warning("the card cannot say how many tokens were seen: %s", error)
        return None
    counts = {row["step"]: row["tokens"] for row in rows if "tokens" in row and row["step"] <= step}
    return sum(counts.values()) if step and len(counts) == step else None


def _start(path: Path, step: int) -> dict[str, Any] | None:
    try:
        starts = [dict(entry) for entry in json.loads(path.read_text())["starts"] if entry["step"] < step]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return starts[-1] if starts else None


def model_card(facts: CardFacts, exported: Exported, published: bool) -> str:
    """Format the card as Markdown, with the header that model hubs read.

    Args:
        facts: what is known.
        exported: what the folder holds.
        published: whether it is in the published layout.
    """
    head = ["---", *([f"license: {json.dumps(facts.license)}"] if facts.license else [])]
    head += ["library_name: " + ("pytorch" if published else "transformers")]
    head += ["tags: [single-cell, gene-expression, mamba]", "---"]
    parts = ["\n".join(head), "# GeneMamba weights", *_what(facts, exported), *_files(exported, published)]
    parts += [*_training(facts, exported), *_scores(facts), *_environment(facts)]
    parts += ["## Licence", facts.license or "No licence was named when these weights were exported (`--license`)."]
    return "\n\n".join(parts) + "\n"


def _what(facts: CardFacts, exported: Exported) -> list[str]:
    model = exported.config.model
    tokenizer = exported.tokenizer
    rows = [
        ("architecture", f"{model.arch}, aggregation {model.aggregation}, norm {model.norm}"),
        (
            "size",
            f"{model.n_layers} layers x {model.d_model}, state {model.d_state}, {facts.n_parameters:,} parameters",
        ),
        ("genes", f"{len(tokenizer.vocabulary.genes):,} ({tokenizer.vocabulary.kind} ids)"),
        ("ranks", f"at most {tokenizer.top_k:,} genes a cell, {'dithered' if tokenizer.dither else 'plain'} counts"),
        ("SHA-256 of the weights", f"`{facts.weights_hash}`"),
        ("SHA-256 of the vocabulary", f"`{tokenizer.vocabulary.hash}`"),
        ("SHA-256 of the medians", f"`{tokenizer.medians_hash}`"),
    ]
    if (classes := exported.classes) is not None:
        rows.insert(2, ("classifier", f"{classes.label!r}, {len(classes.names)} classes"))
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)])
    return ["A state-space model over a cell's genes, ranked by count / median (arXiv 2504.16956).", table]


def _files(exported: Exported, published: bool) -> list[str]:
    if published:
        return [
            "## Files",
            f"`{WEIGHTS}` has the names of the published GeneMamba weights, as far as we could read them. `{TOKENS}` "
            f"has the token of each gene (`<mask>` 0, `<pad>` 1), `{MEDIANS}` its non-zero median. `{FILES}` has the "
            "SHA-256 of every file but this one.",
        ]
    sizes = {"folder": "OUT", "top_k": exported.tokenizer.top_k, "d_model": exported.config.model.d_model}
    return [
        "## Use",
        "With gm-train: `gm-train import OUT CHECKPOINT`. With PyTorch alone, OUT being this folder and on the path:",
        _USE.format(**sizes).replace("import numpy as np", "import json\n\nimport numpy as np", 1).strip(),
        "Genes of equal value stand in another order here than in gm-train, which orders them by a hash."
        + (" gm-train also dithers the counts before it ranks them." if exported.tokenizer.dither else ""),
        "With transformers: `AutoModel`, `AutoModelForMaskedLM` and `AutoModelForSequenceClassification`, each with "
        "`.from_pretrained(OUT, trust_remote_code=True)`. The last one has "
        + ("a new, untrained classifier." if exported.classes is None else "the classifier."),
        f"`{CODE}` is the model in one file. `{FILES}` has the SHA-256 of every file but this one.",
    ]


def _classifier(classes: Classes) -> list[str]:
    """What the classifier was trained for, and how sure it must be."""
    cells = ", ".join(f"{name} ({n:,})" for name, n in zip(classes.names, classes.n_train, strict=True))
    lines = [f"- Objective: fine-tuned for {classes.label!r}. Training cells of each class: {cells}."]
    if (found := classes.calibration) is not None:
        lines.append(
            f"- Calibration on {found.n_cells:,} validation cells: logits / {found.temperature:.3f}; "
            + (
                f"with a probability of {found.threshold:.3f} or more, {found.n_labelled:,} of them get a label, "
                f"{found.n_wrong:,} of these a wrong one."
                if found.threshold is not None
                else f"no threshold keeps wrong labels at {found.max_error:.0%}."
            )
        )
    return lines


def _training(facts: CardFacts, exported: Exported) -> list[str]:
    objective, position = exported.config.objective, exported.position
    seen = f"{position.step:,} steps, {position.cells:,} cells (a cell that was read twice counts twice)"
    seen += f", {facts.tokens:,} tokens" if facts.tokens is not None else "; the number of tokens is not recorded"
    lines = [f"- Seen: {seen}."]
    if exported.classes is not None:
        lines += _classifier(exported.classes)
    else:
        lines.append(f"- Objective: {objective.language}, pathway loss weighted {objective.gamma:g}")
        lines[-1] += "." if exported.identity.get("pathways") else " but without gene sets."
    if start := exported.identity.get("init_from"):
        lines.append(
            f"- The run began from other weights (SHA-256 `{start['weights']}`). {start['new_genes']:,} genes were new "
            "to them and began at the mean embedding."
        )
    if imported := exported.identity.get("imported"):
        lines.append(f"- These weights were imported from the {imported['layout']} layout.")
    if exported.store_hash:
        lines.append(f"- SHA-256 of the store's content: `{exported.store_hash}`.")
    parts = ["## Training", "\n".join(lines)]
    if facts.manifest is None:
        return [*parts, facts.no_manifest]
    rows = ["| data set | cells | training | validation | test | split by | SHA-256 of its tokens and splits |"]
    rows += ["|---|--:|--:|--:|--:|---|---|"]
    rows += [
        f"| {entry.name} | {entry.n_cells:,} | {entry.n_train:,} | {entry.n_validation:,} | {entry.n_test:,} | "
        f"{entry.split_by} | `{entry.content_hash}` |"
        for entry in facts.manifest.datasets
    ]
    return [*parts, "\n".join(rows)]


def _scores(facts: CardFacts) -> list[str]:
    if facts.annotation is not None:
        headings, lines = label_table(facts.annotation["scores"])
        table = [f"| {' | '.join(headings)} |", "|---|" + "--:|" * (len(headings) - 1)]
        table += [f"| {' | '.join(text.strip() for text in line)} |" for line in lines]
        cells = facts.annotation["cells"]
        what = f"{facts.annotation['label']!r} of {cells['held_out']:,} {facts.annotation['split']} cells."
        return ["## Scores, beside their controls", what, "\n".join(table), f"{facts.annotation['unknown']['text']}."]
    text = facts.no_evaluation if facts.evaluation is None else render_markdown(facts.evaluation).strip()
    return ["## Scores, beside their controls", text]


def _environment(facts: CardFacts) -> list[str]:
    if facts.start is None:
        return ["## Environment", "The environment of the training is not recorded beside this checkpoint."]
    start = facts.start
    versions = [f"{name} {start['packages'][name]}" for name in _PACKAGES if name in start["packages"]]
    gpus = ", ".join(sorted(set(start["gpus"]))) or "no GPU"
    where = f"{_count(start['ranks'], 'rank')} on {_count(start['nodes'], 'node')}"
    text = f"{where}, strategy {start['strategy']}, {gpus}; "
    return ["## Environment", f"{text}Python {start['python']}, {', '.join(versions)}; git revision {start['git']}."]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
