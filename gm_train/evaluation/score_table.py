"""The results of an evaluation as text and Markdown: controls beside every score, and what they say in words."""

from gm_train.evaluation.figures import MODEL, RANKS, Columns, Row
from gm_train.evaluation.tasks import TASKS


def check_controls(results: Row) -> None:
    """Refuse results in which the model's score stands without one of its controls.

    Raises:
        ValueError: names the table, the ranks and the controls that are missing.
    """
    for task in TASKS:
        rows = results.get(task.key, [])
        for ranks in RANKS if rows or task.required else ():
            missing = {MODEL, *task.controls} - {row["scored"] for row in rows if row["ranks"] == ranks}
            if missing:
                raise ValueError(f"{task.key} scores on {ranks} ranks stand without: {', '.join(sorted(missing))}")


def verdicts(results: Row) -> list[str]:
    """What the tables say: who wins where, and what that means for what the model knows."""
    return [sentence for task in TASKS if results.get(task.key) for sentence in task.verdicts(results)]


def _cells(rows: list[Row], columns: Columns) -> list[list[str]]:
    """The texts of a table, the best of each column marked with a star."""
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


def blocks(results: Row) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every table of the results: its title, its headings, its lines.

    Raises:
        ValueError: a control is missing.
    """
    check_controls(results)
    tables = []
    for task in TASKS:
        for ranks in RANKS:
            # A report may be of an evaluation that did not have all tasks.
            rows = [row for row in results.get(task.key, []) if row["ranks"] == ranks]
            if not rows:
                continue
            title = task.title(results, ranks)
            if ranks == results["model"]["trained_on"]:
                title += ", as the model was trained"
            tables.append((title, ["", *(heading for _, heading, *_ in task.columns)], _cells(rows, task.columns)))
    return tables


def render_text(results: Row) -> str:
    """The tables and what they say, for a terminal."""
    parts = []
    for title, headings, lines in blocks(results):
        widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
        parts.append(title)
        for line in [headings, *lines]:
            right = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
            parts.append("  " + "  ".join([line[0].ljust(widths[0]), *right]).rstrip())
        parts.append("")
    parts += ["* best of its column", *results["notes"], "", *(f"- {said}" for said in verdicts(results))]
    return "\n".join(parts) + "\n"


def render_markdown(results: Row) -> str:
    """The same as Markdown."""
    parts = []
    for title, headings, lines in blocks(results):
        parts += [f"### {title}", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
        parts += [f"| {' | '.join(text.strip() for text in line)} |" for line in lines] + [""]
    parts += [r"\* best of its column", *results["notes"], "", *(f"- {said}" for said in verdicts(results))]
    return "\n".join(parts) + "\n"
