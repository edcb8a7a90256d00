"""Fake tensors of a CPU, computed with as a GPU would: its kernels keep other things.

torch without CUDA can't differentiate fake CUDA tensors. So the tensors stay the CPU's, and where
Python asks for their device it hears of a GPU; attention and dropout are exchanged for what a GPU
runs, and autocast's float32 list is the GPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

_IN_FLOAT32 = {
    F.layer_norm, F.group_norm, F.cross_entropy, F.mse_loss, F.softplus, F.cosine_similarity,
    torch.softmax, torch.log_softmax, F.softmax, F.log_softmax, torch.exp, torch.log, torch.pow,
    torch.sum, torch.prod, torch.cumsum, torch.rsqrt, torch.norm,
    Tensor.exp, Tensor.log, Tensor.pow, Tensor.sum, Tensor.softmax, Tensor.log_softmax,
    Tensor.cumsum, Tensor.rsqrt, Tensor.norm,
}  # fmt: skip
"""What CUDA's autocast computes in float32 (torch.amp's documentation), as far as networks here
call it from Python; the CPU's list is shorter."""
_DEVICE = Tensor.device.__get__
_GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")


class _AsGPU(TorchFunctionMode):
    def __init__(self, precision: torch.dtype | None) -> None:
        super().__init__()
        self.precision = precision

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return _GPU
        if "device" in kwargs:
            kwargs["device"] = _here(kwargs["device"])
        args = tuple(_here(a) if isinstance(a, torch.device) else a for a in args)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if self.precision is not None and func in _IN_FLOAT32:
            args = tuple(_wide(a) for a in args)
            kwargs = {name: _wide(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _here(device: Any) -> Any:
    return _CPU if str(device).startswith("cuda") else device


def _wide(value: Any) -> Any:
    narrow = (torch.bfloat16, torch.float16)
    return value.float() if isinstance(value, Tensor) and value.dtype in narrow else value


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """No kernel of a GPU keeps the scores; each keeps inputs, output and a number a row."""
    if enable_gqa:  # torch.expand: a fused kernel reads the same keys several times
        groups = q.shape[1] // k.shape[1]
        k, v = (_repeated(x, groups) for x in (k, v))
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=None, scale=scale
    )[0]
    return out


def _repeated(x: Tensor, groups: int) -> Tensor:
    B, K, S, C = x.shape
    return x[:, :, None].expand(B, K, groups, S, C).reshape(B, K * groups, S, C)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return x
    out: Tensor = torch.native_dropout(x, p, True)[0]  # its mask has a byte an element
    return out


@contextmanager
def as_gpu(precision: str) -> Iterator[None]:
    """Within, networks of fake tensors compute as on a GPU, in ``precision`` (fp32, bf16, fp16)."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with ExitStack() as stack:
        if dtype is not None:
            kept = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", dtype)
            stack.callback(torch.set_autocast_enabled, "cuda", kept[0])
            stack.callback(torch.set_autocast_dtype, "cuda", kept[1])
        stack.enter_context(_AsGPU(dtype))
        yield


def backward(loss: Tensor) -> None:
    """``loss.backward()``, within which the disguise holds too: blocks that are recomputed call
    what they called before. torch's own entries would leave the mode for as long as they run."""
    one = torch.ones_like(loss)
    run: Any = torch.autograd.Variable._execution_engine.run_backward
    run((loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)


@contextmanager
def autocast(precision: str) -> Iterator[None]:
    """The CPU's autocast, which the tensors obey."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        yield
        return
    with torch.autocast("cpu", dtype):
        yield
