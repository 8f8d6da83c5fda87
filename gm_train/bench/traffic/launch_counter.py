"""Count the kernels that a computation launches, and the bytes that they move, on fake tensors: nothing is computed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gm_train.model.kernels.fake_gpu import as_on_a_gpu

#: Operations that only write their first argument.
_FILL = ("copy_", "fill_", "zero_")
#: Operations that read nothing, although some take a tensor as a model for the shape.
_MAKE = ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "arange")


@dataclass(frozen=True)
class Launch:
    """One kernel.

    Attributes:
        part: the part of the model that launched it.
        backward: whether in the backward pass.
        name: of the operation or the kernel.
        n_bytes: bytes read and written, if every array is moved once.
        operation: of ours, such as "gm_train::mix", that launched it; "" for others.
    """

    part: str
    backward: bool
    name: str
    n_bytes: int
    operation: str = ""


class LaunchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records a `Launch` for each operation that is not a view, and for each launch of a Triton kernel.

    Each operation of PyTorch is taken to be one kernel that reads its inputs and writes its outputs once. A Triton
    kernel is taken to move each of its arrays once, whether it reads or writes it.

    Attributes:
        launches: what was recorded, in order.
        part, backward: where the next launches belong.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []
        self.part, self.backward, self._operation = "", False, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record it."""
        kwargs = kwargs or {}
        if func.namespace == "gm_train":
            return self._of_ours(func._schema.name, args, kwargs)
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        reads, writes = _tensors((args, kwargs)), _tensors(out)
        in_place = func._schema.is_mutable
        if not in_place and (not writes or name.startswith(("empty", "new_empty"))):
            return out
        shared = {tensor.untyped_storage()._cdata for tensor in reads}
        if not in_place and all(tensor.untyped_storage()._cdata in shared for tensor in writes):
            return out  # a view
        if name in _FILL:
            reads = reads[1:]
        if name in _MAKE:
            reads = []
        self._record(name, (*reads, *writes))
        return out

    def _of_ours(self, name: str, args: Any, kwargs: Any) -> Any:
        """Run what an operation of ours runs on a GPU; on fake tensors PyTorch would only ask for its shapes."""
        self._operation = name
        try:
            with self:
                return OPDEFS[name]._init_fn(*args, **kwargs)
        finally:
            self._operation = ""

    def _record(self, name: str, arrays: Iterable[Tensor]) -> None:
        self.launches.append(Launch(self.part, self.backward, name, sum(map(_bytes, arrays)), self._operation))

    def as_on_a_gpu(self) -> AbstractContextManager[None]:
        """Compute as on a GPU inside the block; the launches of Triton kernels are recorded and not made."""
        return as_on_a_gpu(self._record)

    @contextmanager
    def in_backward(self, nodes: Iterable[tuple[Any, str]], otherwise: str) -> Iterator[None]:
        """Record a backward pass, each launch in the part of the autograd node that makes it.

        Args:
            nodes: nodes and their parts.
            otherwise: the part of what runs between nodes: sums of the gradients that reach a node on several ways.
        """

        def enter(part: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                self.part = part

            return hook

        handles = []
        for node, part in nodes:
            handles += [node.register_prehook(enter(part)), node.register_hook(enter(otherwise))]
        self.part, self.backward = otherwise, True
        try:
            yield
        finally:
            self.backward = False
            for handle in handles:
                handle.remove()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a tensor: an expanded dimension counts once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()
