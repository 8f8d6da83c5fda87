"""Print a plan, with the assumption behind each number."""

from gm_train.plan.devices import USABLE
from gm_train.plan.make_plan import SAVED_PER_S, Plan

_HOUR = 3600.0


def _bytes(value: float) -> str:
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def _hours(seconds: float) -> str:
    return f"{seconds / _HOUR:,.1f} h" if seconds >= _HOUR / 10 else f"{seconds / 60:,.1f} min"


def _tokens(number: float) -> str:
    return f"{number / 1e9:,.1f} billion" if number >= 1e9 else f"{number / 1e6:,.2f} million"


def summary(plan: Plan) -> str:
    """One or two lines, for `gm-train launch`."""
    limit = "" if plan.device_memory is None else f" of {_bytes(plan.device_memory)}"
    text = f"plan: {_bytes(plan.memory.total)}{limit} a rank ({plan.device})"
    if plan.step_s is not None and plan.time is not None:
        tokens = plan.rows * plan.facts.tokens_per_row / plan.step_s
        steps = plan.config.trainer.max_steps
        text += f", {tokens:,.0f} tokens/s, {_hours(steps * plan.step_s)} for {steps:,} steps; {plan.time.basis}"
    return f"{text}\ndetails: gm-train plan with the same settings"


def render_plan(plan: Plan) -> str:
    """The whole plan."""
    return "\n".join([*_what(plan), "", *_memory(plan), "", *_speed(plan), "", *_checkpoints(plan)])


def _what(plan: Plan) -> list[str]:
    model, ranks = plan.config.model, plan.ranks
    lines = [
        f"model       {model.arch} {model.n_layers} x {model.d_model}: {plan.size.whole:,} parameters, "
        f"{plan.config.trainer.precision}",
        f"ranks       {ranks.world_size} on {ranks.n_nodes} node{'s' if ranks.n_nodes > 1 else ''}, each with "
        f"{plan.device}; strategy {plan.strategy} ({plan.why})",
        f"step        {plan.rows} rows of {plan.config.data.row_length:,} tokens; a rank takes {plan.n_micro} "
        f"forward pass{'es' if plan.n_micro > 1 else ''} of {plan.micro_rows} rows",
    ]
    if plan.facts.assumed:
        lines.append(f"store       {plan.facts.assumed}")
    else:
        lines.append(
            f"store       {plan.facts.n_cells:,} training cells a pass, {plan.facts.cells_per_row:.3g} cells and "
            f"{plan.facts.tokens_per_row:,.0f} tokens a row"
        )
    return lines


def _memory(plan: Plan) -> list[str]:
    memory, data = plan.memory, plan.config.data
    slots = plan.micro_rows * data.row_length
    each = memory.activations / slots / plan.config.model.n_layers
    checkpointing = ", with activation checkpointing" if plan.config.trainer.activation_checkpointing else ""
    rows = [
        ("weights", memory.weights, ""),
        ("gradients", memory.gradients, ""),
        ("moments", memory.moments, ""),
        ("gathered", memory.gathered, "layers of other ranks, while they compute"),
        ("activations", memory.activations, f"{slots:,} tokens, {each / 1e3:.3g} kB a token and layer{checkpointing}"),
        ("working", memory.working, f"for a moment; the logits of the loss are {_bytes(plan.logits_bytes)}"),
    ]
    lines = ["memory of a rank"]
    for name, value, note in rows:
        if value:
            lines.append(f"  {name:<12}{_bytes(value):>12}{f'   {note}' if note else ''}")
    limit = ""
    if plan.device_memory is not None:
        limit = f"   of {_bytes(plan.device_memory)}, of which {USABLE:.0%} may be filled"
    lines.append(f"  {'sum':<12}{_bytes(memory.total):>12}{limit}")
    lines.append(f"  {'loader':<12}{_bytes(plan.loader_bytes):>12}   of the node's memory: cache, pools, workers")
    if not plan.on_gpu:
        lines.append("  On a CPU, what the C library's allocator keeps of freed memory comes on top.")
    if plan.measured is not None and plan.measured.peak_bytes is not None:
        lines.append(
            f"  measured: {_bytes(plan.measured.peak_bytes)} at the peak of a step with {plan.measured.tokens:,} tokens"
        )
    return lines


def _speed(plan: Plan) -> list[str]:
    if plan.step_s is None or plan.time is None:
        return ["speed       not known: there is no data sheet for CPUs; --measured takes a few steps on this machine"]
    step_s, ranks = plan.step_s, plan.ranks.world_size
    tokens = plan.rows * plan.facts.tokens_per_row
    unit = "GPU-hours" if plan.on_gpu else "rank-hours"

    def run(name: str, steps: float) -> str:
        seconds = steps * step_s
        return (
            f"  {name:<12}{steps:>12,.0f} steps   {_hours(seconds)}, {seconds / _HOUR * ranks:,.1f} {unit}, "
            f"{_tokens(steps * tokens)} tokens"
        )

    lines = [
        f"speed       {tokens / step_s:,.0f} tokens/s, {tokens / step_s / ranks:,.0f} a rank; {step_s:.3g} s a step",
        f"  {plan.time.basis}",
        "  not counted: launches of kernels, sums between ranks, waiting for data, validation",
        run("max_steps", plan.config.trainer.max_steps),
    ]
    if plan.epoch_steps is not None:
        lines.append(run("an epoch", plan.epoch_steps))
    return lines


def _checkpoints(plan: Plan) -> list[str]:
    settings, size = plan.config.checkpoint, plan.checkpoint_bytes
    # Besides the newest: the best by validation loss, and by the panel.
    kept = settings.keep_last + 1 + (plan.config.evaluation.every_steps > 0)
    pause = size / SAVED_PER_S
    saves = -(-plan.config.trainer.max_steps // settings.every_steps)
    text = f"checkpoints {_bytes(size)} each; {kept} are kept, and one that is written: {_bytes((kept + 1) * size)}"
    share = ""
    if plan.step_s is not None:
        share = f", {pause / (pause + settings.every_steps * plan.step_s):.1%} of the time"
    return [
        text,
        f"  a pause of {pause:.2g} s every {settings.every_steps:,} steps, {saves:,} in all{share}, if the file system "
        f"takes {SAVED_PER_S / 1e9:g} GB/s (assumed)",
    ]
