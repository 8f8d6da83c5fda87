"""What sections of a report are made of: tables and pictures that fit a desktop and a phone."""

import base64
import html
import struct
from collections.abc import Iterable, Sequence

from gm_train.evaluation.figures import MODEL

#: Pixels of a page for each pixel of a picture, below which its text is too small to read.
_SMALLEST = 0.42


def text(value: str) -> str:
    """Escape a text for a page."""
    return html.escape(value)


def table(caption: str, headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a table; on a phone, each line becomes a card with the headings beside its values.

    Args:
        caption: above the table; may be empty.
        headings: one for each column. Without any, lines are pairs, which stay side by side.
        lines: texts; a star after a number makes it bold.
    """
    parts = [f"<div class=table><table{'' if headings else ' class=pairs'}>"]
    if caption:
        parts.append(f"<caption>{text(caption)}</caption>")
    if headings:
        parts.append("<thead><tr>" + "".join(f"<th>{text(heading)}</th>" for heading in headings) + "</tr></thead>")
    parts.append("<tbody>")
    for line in lines:
        cells = [f"<td>{text(line[0])}</td>"]
        for number, value in enumerate(line[1:], 1):
            label = f' data-label="{text(headings[number])}"' if headings else ""
            best = " class=best" if value.endswith("*") else ""
            cells.append(f"<td{label}{best}>{text(value.rstrip('* '))}</td>")
        parts.append(f"<tr{' class=model' if line[0] == MODEL else ''}>{''.join(cells)}</tr>")
    return "".join([*parts, "</tbody></table></div>"])


def picture(png: bytes, alt: str, caption: str = "", as_drawn: bool = False) -> str:
    """Format a PNG; where it would be too small to read, it scrolls sideways in its own box.

    Args:
        png: the picture.
        alt: what it shows, for readers who do not see it.
        caption: below it; may be empty.
        as_drawn: whether a dark page keeps its colours, since many of them must be told apart.
    """
    width = struct.unpack(">I", png[16:20])[0]  # of the PNG's first chunk
    data = base64.b64encode(png).decode()
    size = f'style="min-width:{round(width * _SMALLEST)}px"'
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{text(alt)}" {size} src="data:image/png;base64,{data}">'
    return f"<figure{' class=as-drawn' if as_drawn else ''}><div class=scroll>{image}</div>{below}</figure>"


def notes(lines: Iterable[str]) -> list[str]:
    """Format sentences in small print."""
    return [f"<p class=notes>{text(line)}</p>" for line in lines]


def items(lines: Sequence[str]) -> str:
    """Format a list; nothing if it is empty."""
    return f"<ul class=verdicts>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""
