"""List every setting with its type, default and meaning.

The comments of `schema.py` are the only place where meanings are written: `gm-train fit --settings` prints them, and
`docs/settings.md` is what it prints.
"""

import ast
import inspect
import io
import tokenize
from dataclasses import dataclass, fields
from typing import Any

from gm_train.config import schema
from gm_train.config.load import DEFAULTS

_HEADER = """\
# Settings

Each setting is written in a YAML file, as `optim:` and below it `lr: 1e-3`, or on the command line, as `optim.lr=1e-3`.
`None` is `null` there. Later files and words override earlier ones. `gm-train fit --settings` prints this page.
"""

_WORDS = {None: "null", True: "true", False: "false"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: its full name, such as `optim.lr`.
        type: its type, as Python writes it.
        default: its default value.
        meaning: the comment behind it; empty if it has none.
    """

    name: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class Section:
    """The settings under one name.

    Attributes:
        name: such as `optim`.
        about: what they are about, one sentence.
        settings: in the order of the schema.
    """

    name: str
    about: str
    settings: tuple[Setting, ...]


def all_sections() -> tuple[Section, ...]:
    """Read the sections of `Config` from the source of `schema.py`."""
    source = inspect.getsource(schema)
    comments = {
        token.start[0]: token.string.lstrip("#: ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    sections = []
    for section in fields(schema.Config):
        node = classes[section.type if isinstance(section.type, str) else section.type.__name__]
        settings = []
        for entry in node.body:
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                name = f"{section.name}.{entry.target.id}"
                meaning = comments.get(entry.end_lineno or entry.lineno, "")
                settings.append(Setting(name, ast.unparse(entry.annotation), DEFAULTS[name], meaning))
        sections.append(Section(section.name, ast.get_docstring(node) or "", tuple(settings)))
    return tuple(sections)


def render_settings() -> str:
    """All settings as a page that can be read in a terminal and as Markdown."""
    parts = [_HEADER]
    for section in all_sections():
        parts.append(f"## {section.name}\n\n{section.about}\n")
        for one in section.settings:
            parts.append(f"- `{one.name}` ({one.type}, default {_shown(one.default)}): {one.meaning}")
        parts.append("")
    return "\n".join(parts).rstrip()


def _shown(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return f"`{_WORDS[value]}`"
    return "empty" if value in ("", [], {}) else f"`{value}`"
