"""Ranks that have met already, as Lightning's cluster environment."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from gm_train.ranks.ranks import Ranks


class Joined(ClusterEnvironment):
    """Tells Lightning of ranks that run already and have met."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"  # the process group stands

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._ranks.world_size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._ranks.global_rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._ranks.local_rank

    def node_rank(self) -> int:
        return self._ranks.node_rank
