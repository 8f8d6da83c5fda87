"""Format the results of an evaluation as text and Markdown: every score beside its controls, and verdicts in words."""

from gm_train.evaluation.figures import MODEL, RANKS, Columns, Row, split_of
from gm_train.evaluation.tasks import TASKS

_LABEL: Columns = (
    ("accuracy", "accuracy %", "accuracy (%)", 1, True),
    ("macro_f1", "macro-F1 %", "macro-F1 (%)", 1, True),
)

#: What a reader of the tables and of the verdicts must know.
LEGEND = (
    '± is one standard deviation over seeds. The model is "level with" a control if their means differ by no more than '
    "two standard deviations of the difference. ± does not include which cells are held out: with 150 of them, that "
    "alone moves an accuracy by a few per cent."
)


def check_controls(results: Row) -> None:
    """Refuse results that lack the model's score or one of its controls.

    Raises:
        ValueError: rows are missing; the message names the task, the ranks and the rows.
    """
    for task in TASKS:
        rows = results.get(task.key, [])
        # Earlier versions did not say which tasks were scored.
        for ranks in RANKS if rows or task.key in results.get("tasks", {"scored": []})["scored"] else ():
            missing = {MODEL, *task.controls} - {row["scored"] for row in rows if row["ranks"] == ranks}
            if missing:
                raise ValueError(f"{task.key} scores on {ranks} ranks lack: {', '.join(sorted(missing))}")


def verdicts(results: Row) -> list[str]:
    """Sentences on the tables: which controls the model beats, and what that means for what it knows."""
    return [sentence for task in TASKS if results.get(task.key) for sentence in task.verdicts(results)]


def checks(results: Row) -> list[str]:
    """A line on each check: its outcome, its name and what it found; none for an evaluation of an earlier version."""
    return [f"{found['outcome']}: {found['check']}. {found['text']}" for found in results.get("checks", [])]


def _cells(rows: list[Row], columns: Columns) -> list[list[str]]:
    """Format the cells of a table, of `scored` and each column; a star marks the best of each column."""
    texts = []
    for row in rows:
        line = [row["scored"]]
        for key, _, _, decimals, more in columns:
            means = [other[key]["mean"] for other in rows]
            best = row[key]["mean"] == (max(means) if more else min(means))
            sd = row[key]["sd"]
            spread = f" ± {sd:.{decimals}f}" if sd is not None else ""
            line.append(f"{row[key]['mean']:.{decimals}f}{spread}{'*' if best else ' '}")
        texts.append(line)
    return texts


def label_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Format the headings and the rows of the scores of an annotator and its controls."""
    return ["", *(heading for _, heading, *_ in _LABEL)], _cells(rows, _LABEL)


def blocks(results: Row) -> list[tuple[str, list[str], list[list[str]]]]:
    """Format every table of the results as its title, its headings and its rows.

    Raises:
        ValueError: a control is missing.
    """
    check_controls(results)
    tables = []
    for task in TASKS:
        for ranks in RANKS:
            # A report may show an older evaluation, which did not have all tasks.
            rows = [row for row in results.get(task.key, []) if row["ranks"] == ranks]
            if not rows:
                continue
            as_trained = ", ranks as in its training" if ranks == results["model"]["trained_on"] else ""
            for title, columns in task.tables(results, ranks):
                headings = ["", *(heading for _, heading, *_ in columns)]
                tables.append((title + as_trained, headings, _cells(rows, columns)))
    return tables


def scored_checkpoint(results: Row) -> str:
    """Name the checkpoint that was scored (its step, its path and the start of its hash), and the held-out cells."""
    checkpoint = results.get("checkpoint")
    if checkpoint is None:
        return "a checkpoint that this evaluation, of an earlier version of gm-train, does not name"
    return (
        f"step {checkpoint['step']:,} ({checkpoint['path']}, hash {checkpoint['hash'][:12]}) on "
        f"{results['cells']['held_out']:,} {split_of(results)} cells"
    )


def aligned(headings: list[str], lines: list[list[str]]) -> list[str]:
    """Format a table as lines of text: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
    texts = []
    for line in [headings, *lines]:
        right = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        texts.append("  " + "  ".join([line[0].ljust(widths[0]), *right]).rstrip())
    return texts


def render_text(results: Row) -> str:
    """Format tables, notes, verdicts and checks for a terminal."""
    parts = [f"Scores of {scored_checkpoint(results)}", ""]
    for title, headings, lines in blocks(results):
        parts += [title, *aligned(headings, lines), ""]
    parts += [f"* best of the column. {LEGEND}", *results["notes"], "", *(f"- {line}" for line in verdicts(results))]
    if found := checks(results):
        parts += ["", "Checks", *(f"- {line}" for line in found)]
    return "\n".join(parts) + "\n"


def render_markdown(results: Row) -> str:
    """Format tables, notes, verdicts and checks as Markdown."""
    parts = [f"Scores of {scored_checkpoint(results)}", ""]
    for title, headings, lines in blocks(results):
        parts += [f"### {title}", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
        parts += [f"| {' | '.join(text.strip() for text in line)} |" for line in lines] + [""]
    parts += [rf"\* best of the column. {LEGEND}", *results["notes"], ""]
    parts += [f"- {line}" for line in verdicts(results)]
    if found := checks(results):
        parts += ["", "### Checks", "", *(f"- {line}" for line in found)]
    return "\n".join(parts) + "\n"
