"""Lightning's cluster environment for ranks that are connected already."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from gm_train.ranks.ranks import Ranks


class Joined(ClusterEnvironment):
    """Describes to Lightning the ranks of a process group that exists already."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        """Always true: Lightning must not start processes."""
        return True

    @property
    def main_address(self) -> str:
        """A placeholder: the process group exists, so nothing connects to it."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A placeholder, as `main_address` is."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Always false: this environment is only passed to the trainer, never detected."""
        return False

    def world_size(self) -> int:
        """Number of ranks."""
        return self._ranks.world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the number of ranks is known."""

    def global_rank(self) -> int:
        """Number of this rank among all ranks."""
        return self._ranks.global_rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is known."""

    def local_rank(self) -> int:
        """Number of this rank among those of its node."""
        return self._ranks.local_rank

    def node_rank(self) -> int:
        """Number of this rank's node."""
        return self._ranks.node_rank
