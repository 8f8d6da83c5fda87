"""Render the results of `gm-train bench gpu` as a page that can stand in `docs/BENCHMARKS.md`."""

from collections.abc import Callable

from gm_train.bench.gpu.gpu_plan import PARTS
from gm_train.bench.gpu.part_tables import PART_TABLES
from gm_train.bench.gpu.scene import Row
from gm_train.bench.model.contenders import PUBLISHED
from gm_train.bench.tables import table, versions

_REHEARSAL = (
    "> **This is a rehearsal on a CPU, at tiny sizes. It shows that every part runs, and says nothing about a GPU:\n"
    "> no number below may be quoted.**"
)
_STATES = {
    "done": "done",
    "wrong": "**ran, and found a problem**",
    "failed": "**failed**",
    "stopped": "**stopped at its limit**",
    "not run": "not run",
}


def render_gpu(results: Row) -> str:
    """Render what is known so far. A part that has not run is named as such, and nothing is shown for it."""
    rehearsal, parts = results["rehearsal"], results["parts"]
    texts = ["## Rehearsal on a CPU: says nothing about a GPU", _REHEARSAL] if rehearsal else ["## On a GPU"]
    texts += [_head(results), _states(parts)]
    if not rehearsal:
        texts.append(_targets(parts))
    for part in PARTS:
        if part.name in parts:
            texts.append(f"### {part.title}{' (rehearsal on a CPU)' if rehearsal else ''}")
            texts += _part(part.name, parts[part.name])
    return "\n\n".join(texts) + "\n"


def _head(results: Row) -> str:
    made = results["made"]
    device = _found(results["parts"], "machine").get("device", {"name": "not known: the part machine has no result"})
    hardware = device["name"]
    if "memory" in device:
        hardware += (
            f" ({device['memory'] / 2**30:.0f} GiB, compute capability {device['capability']}, CUDA {device['cuda']}, "
            f"driver {device['driver'] or 'unknown'})"
        )
    return (
        f"`{made['command']}`\n\n{made['date']}; {hardware}; processor {made['cpu']}; Python {made['python']}, "
        + versions(made["packages"], made["git"])
        + f". All parts together took {made.get('wall_s', 0.0):.0f} s of {results['minutes']:g} minutes."
    )


def _states(parts: Row) -> str:
    rows = []
    for part in PARTS:
        if part.name in parts:
            found = parts[part.name]
            times = [f"{found[key]:.0f} s" if key in found else "-" for key in ("seconds", "limit_s")]
            rows.append([part.title, _STATES[found["state"]], *times])
    return table(["part", "how it ended", "took", "limit"], rows)


def _part(name: str, found: Row) -> list[str]:
    if found["state"] == "not run":
        return [f"Not run: {found['why']}."]
    texts = []
    if found["state"] == "stopped":
        texts.append(f"Stopped at its limit of {found['limit_s']:.0f} s. What was known by then:")
    if found["state"] == "failed":
        texts.append("Failed. What was known before:")
    shown = PART_TABLES[name](found["results"]) if found["results"] else []
    texts += shown or ["Nothing."]
    problems = found["results"].get("problems", [])
    if problems:
        texts.append("Problems:\n\n" + "\n".join(f"- {problem}" for problem in problems))
    if found.get("tail"):
        texts.append("The end of its log:\n\n```\n" + found["tail"].replace("```", "'''") + "\n```")
    return texts


def _found(parts: Row, name: str) -> Row:
    results: Row = parts.get(name, {}).get("results", {})
    return results


def _targets(parts: Row) -> str:
    """The table of targets of `docs/BENCHMARKS.md`; what is not known is "not run"."""
    rows = [[what, target, measure(parts) or "not run"] for what, target, measure in _TARGETS]
    return table(["what", "target", "measured"], rows)


def _over_published(parts: Row) -> str | None:
    for label, rungs in _found(parts, "ladder").get("ladder", {}).items():
        if label == "full rows" and rungs[-1].get("over_published"):
            return f"{rungs[-1]['over_published']:.2f}, {rungs[-1]['contender'].strip('+ ')} on {label}"
    return None


def _share_of_roofline(parts: Row) -> str | None:
    kernels = _found(parts, "roofline").get("kernels")
    if not kernels:
        return None
    least, taken = (sum(row[key] * row["count"] for row in kernels) for key in ("least_s", "median_s"))
    return f"{least / taken:.0%} of the sum over all kernels"


def _tokens_per_s(parts: Row) -> str | None:
    found = [row for row in _found(parts, "roofline").get("steps", []) if "tokens_per_s" in row]
    best = max(found, key=lambda row: row["tokens_per_s"], default=None)
    return f"{best['tokens_per_s'] / 1e6:.3f} M, {best['contender']}" if best else None


def _crossover(parts: Row) -> str | None:
    meeting = _found(parts, "race").get("crossover")
    if meeting is None:
        return None
    return f"{meeting['length']:,.0f} genes" if meeting["length"] else f"none: {meeting['ahead'][0]} is always faster"


_TARGETS: list[tuple[str, str, Callable[[Row], str | None]]] = [
    (f"cells/s over `{PUBLISHED}`, with the ladder", "2", _over_published),
    ("share of the per-kernel roofline", "85 %", _share_of_roofline),
    ("real tokens/s on one H200", "0.6 M", _tokens_per_s),
    ("crossover with the transformer", "-", _crossover),
]
