"""Every operation of a step, followed as it is called: which tensors live, what is computed.

The networks are torch's fake tensors: they have shapes and no memory, so that a model of any size
is traced in seconds. The batch's integers are real (lengths decide how a batch is cut), and an
operation that meets a fake tensor is fake.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@dataclass(frozen=True)
class Operation:
    """One call of a kernel."""

    name: str
    flops: float
    """Of matrix products and convolutions; 0 of all else."""
    bytes: int
    """Read and written."""
    dtype: torch.dtype

    def shared(self, steps: int) -> Operation:
        """What is due at every so manieth step, as if each had its share."""
        return replace(self, flops=self.flops / steps, bytes=self.bytes // steps)


@dataclass
class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Live tensor bytes and operations of what runs within, fake or real."""

    live: int = 0
    """Bytes of the tensors that exist, each memory once."""
    peak: int = 0
    operations: list[Operation] = field(default_factory=list)
    on_peak: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # two thirds of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # of the disguise: torch must see what there is
            out = func(*args, **kwargs)
            if func.namespace == "prim":
                return out
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            for tensor in (*inputs, *outputs):
                self.hold(tensor)
            self._count(func, args, kwargs, out, inputs, outputs)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count the tensor's memory until it is freed; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key = id(storage)  # torch keeps one object for a storage as long as it lives
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        weakref.finalize(storage, self._let_go, key, size).atexit = False
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            self.on_peak()

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def restart(self) -> None:
        """Forget the peak and the operations; what lives, lives."""
        self.peak, self.operations = self.live, []
        self.on_peak()

    def _count(
        self,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        out: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        shared = {id(x.untyped_storage()) for x in inputs}
        is_view = all(id(x.untyped_storage()) in shared for x in outputs)
        if is_view and not func._schema.is_mutable:
            return
        moved = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
        dtype = next((x.dtype for x in outputs if x.is_floating_point()), torch.int64)
        flops = _flops(func, args, kwargs, out)
        self.operations.append(Operation(str(func.overloadpacket), flops, moved, dtype))


def _bytes(tensor: Tensor) -> int:
    """What a kernel reads of it: an expanded one is small, a slice of a large one too."""
    stored = [n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    return math.prod(stored) * tensor.element_size()


def _flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    packet = func.overloadpacket
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        shapes = [args[i].shape for i in range(3)]
        return float(flop_counter.sdpa_flop_count(*shapes))  # type: ignore[no-untyped-call]
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        shapes = [args[i].shape for i in range(4)]
        return float(flop_counter.sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]
    if packet not in flop_counter.flop_registry:
        return 0.0
    return float(flop_counter.flop_registry[packet](*args, **kwargs, out_val=out))


@contextmanager
def fakes() -> Iterator[FakeTensorMode]:
    """Within, tensors that are made are fake. Afterwards they meet real ones as if those were."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield mode
