"""Format figures and tables of reports as Markdown."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds(value: float) -> str:
    """Format seconds, as milliseconds below one."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def mebibytes(value: int | None) -> str:
    """Format bytes as MiB; None is unknown."""
    return "unknown" if value is None else f"{value / 2**20:,.0f} MiB"


def ratio(value: float | None) -> str:
    """Format a ratio; None becomes a dash."""
    return "-" if value is None else f"{value:.2f}x"


def versions(packages: dict[str, str], git: str | None) -> str:
    """List versions of packages and, for a checkout, its revision, with "+" if files differ from it."""
    text = ", ".join(f"{name} {version}" for name, version in packages.items())
    return text + (f"; revision {git[:10]}{'+' if git.endswith('+') else ''}" if git else "")
