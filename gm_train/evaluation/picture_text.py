"""Text for matplotlib that is shown as it stands."""


def literal(text: str) -> str:
    """Escape dollar signs: names of types and of columns may have two, and matplotlib reads formulas between them."""
    return text.replace("$", r"\$")
