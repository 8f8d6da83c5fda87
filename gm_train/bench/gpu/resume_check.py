"""The part `resume`: a run that ends half-way and is resumed, beside the same run without a stop."""

import shutil

from gm_train.bench.gpu.gpu_plan import TRAINED
from gm_train.bench.gpu.same_losses import STEPS, fit_words, largest_difference, read_order, read_steps
from gm_train.bench.gpu.scene import Row, Scene

_STOPPED = "runs/bf16-stopped"
_HALF = STEPS // 2
#: Largest relative difference of a loss where two runs without a stop differ, too.
_LIMIT = 5e-3


def check_resume(scene: Scene) -> None:
    """Keep whether the losses are the same to the last bit: before the stop, as a control, and after it."""
    shutil.rmtree(scene.out / _STOPPED, ignore_errors=True)
    for steps in (_HALF, STEPS):
        scene.command(*fit_words(scene, _STOPPED, "trainer.precision=bf16", steps=steps))
    scene.keep(compare_resumed(read_steps(scene.out / _STOPPED), read_steps(scene.out / TRAINED)))


def compare_resumed(resumed: list[Row], straight: list[Row]) -> Row:
    """Compare a resumed run with one that was not stopped.

    Steps before the stop are two runs of the same steps. If these differ already, the device's kernels do not repeat
    their sums in one order, and bits cannot tell whether resuming is exact.

    Args:
        resumed: records of the run that was stopped after five steps.
        straight: records of the other one.
    """
    halves = {"before": slice(0, _HALF), "after": slice(_HALF, STEPS)}
    off = {name: largest_difference(resumed[half], straight[half]) for name, half in halves.items()}
    problems = []
    if read_order(resumed) != read_order(straight):
        problems.append("the resumed run has read other cells")
    if off["after"] and not off["before"]:
        problems.append(f"the losses after the stop are off by {off['after']:.1e}; before it they are the same")
    if not max(off.values()) < _LIMIT:
        problems.append(f"the losses are off by up to {max(off.values()):.1e}")
    return {"stopped_after": _HALF, "steps": len(resumed), "off": off, "problems": problems}
