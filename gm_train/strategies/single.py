"""One process, without a process group."""

from lightning.pytorch.strategies import SingleDeviceStrategy

from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import Steps


class SingleProcess(Steps, SingleDeviceStrategy):
    """One rank, without a process group."""

    def __init__(self, ranks: Ranks, clip: float) -> None:
        SingleDeviceStrategy.__init__(self, ranks.device())
