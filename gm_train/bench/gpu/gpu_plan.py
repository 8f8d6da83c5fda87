"""The plan of `gm-train bench gpu`: its parts in order, the time of each, and the sizes of what they run."""

from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import OptionError


@dataclass(frozen=True)
class GpuPart:
    """One part of the report, which runs in a process of its own.

    Attributes:
        name: of its files, and on the command line.
        title: heading on the page.
        share: of the time, which is divided in the ratio of the shares. Time that earlier parts left over is divided
            again.
        needs: files of an earlier part without which this one cannot run, under the folder of the results, by the
            name of that part.
    """

    name: str
    title: str
    share: float
    needs: tuple[tuple[str, str], ...] = ()


#: Written when all simulated cells are complete, with the sizes that they were made for.
READY = "cells/ready"
_CELLS = (("cells", READY),)
#: The run of `losses` in bf16: its losses are compared with a resumed run, its checkpoint is evaluated.
TRAINED = "runs/bf16"
#: In the order in which they run: what matters most comes first, since the last parts may have too little time.
PARTS = (
    GpuPart("machine", "Machine", 40),
    GpuPart("cells", "Simulated cells", 40),
    GpuPart("parity", "Parity of the kernels", 45),
    GpuPart("losses", "Ten training steps beside the CPU's", 75, _CELLS),
    GpuPart("resume", "Resume after a stop", 45, (*_CELLS, ("losses", f"{TRAINED}/metrics.jsonl"))),
    GpuPart("commands", "Evaluation and embedding", 50, (*_CELLS, ("losses", f"{TRAINED}/checkpoints"))),
    GpuPart("roofline", "Tokens per second against the roofline", 80, _CELLS),
    GpuPart("profile", "Profile and traffic by part", 30, _CELLS),
    GpuPart("race", "Race with the published layer and a transformer", 95, _CELLS),
    GpuPart("ladder", "The ladder from published to ours", 60, _CELLS),
)


@dataclass(frozen=True)
class GpuSizes:
    """Sizes of what the parts run.

    Attributes:
        model: settings of the model, as words of `gm-train fit`.
        deep_cells, natural_cells: simulated cells of the steps that are timed.
        atlas_cells, few_cells: simulated cells that are trained on, evaluated and embedded; those of them that the
            CPU embeds as well.
        lengths: genes of a cell in the race.
        race_tokens, ladder_tokens, step_tokens: tokens of a step of the race, of the ladder, and of the steps that are
            profiled and compared with the roofline.
        steps, warmup: timed and untimed steps.
        fit_rows, fit_length: rows of a training step that the CPU takes as well, and their tokens.
        compiled: whether the steps beside the roofline are also timed with torch.compile.
    """

    model: tuple[str, ...]
    deep_cells: int
    natural_cells: int
    atlas_cells: int
    few_cells: int
    lengths: tuple[int, ...]
    race_tokens: int
    ladder_tokens: int
    step_tokens: int
    steps: int
    warmup: int
    fit_rows: int
    fit_length: int
    compiled: bool


#: On a GPU: the sizes of the published model, which are the defaults.
GPU_SIZES = GpuSizes(
    model=(), deep_cells=192, natural_cells=512, atlas_cells=400, few_cells=24, lengths=(512, 1024, 2048, 4096, 8192),
    race_tokens=32_768, ladder_tokens=16_384, step_tokens=49_152, steps=10, warmup=2, fit_rows=2, fit_length=512,
    compiled=True,
)  # fmt: skip
#: On a CPU: as small as every part allows.
REHEARSAL_SIZES = GpuSizes(
    model=("model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.head_dim=16", "model.d_state=16"),
    deep_cells=8, natural_cells=24, atlas_cells=120, few_cells=6, lengths=(512, 1024),
    race_tokens=2048, ladder_tokens=512, step_tokens=2048, steps=10, warmup=1, fit_rows=2, fit_length=256,
    compiled=False,
)  # fmt: skip


def sizes_on(device: str) -> GpuSizes:
    """Return the sizes of the parts on a device, cuda or cpu."""
    return GPU_SIZES if device == "cuda" else REHEARSAL_SIZES


@dataclass(frozen=True)
class GpuPlan:
    """Settings of the whole report.

    Attributes:
        out: folder for the results.
        device: cuda, or cpu for a rehearsal.
        minutes: for all parts together.
        names: the parts to run.
        asked: the command line, for the report.
    """

    out: Path
    device: str = "cuda"
    minutes: float = 9.0
    names: tuple[str, ...] = tuple(part.name for part in PARTS)
    asked: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise OptionError if the plan cannot be run."""
        if not 0 < self.minutes < float("inf"):
            raise OptionError(f"--minutes {self.minutes:g}: must be greater than 0")
        known = [part.name for part in PARTS]
        for name in self.names:
            if name not in known:
                raise OptionError(f"--parts {name}: expected some of {', '.join(known)}")
        if not self.names:
            raise OptionError(f"--parts: none given; expected some of {', '.join(known)}")


def limit_of(parts: tuple[GpuPart, ...], left: float) -> float:
    """Return the seconds that the first of the remaining parts may take.

    Args:
        parts: those that have not run yet.
        left: seconds for all of them.
    """
    return left * parts[0].share / sum(part.share for part in parts)
