"""Chunked cross-entropy: values and gradients are those of the whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genus.networks.transformer import scores
from genus.networks.transformer.scores import token_scores

V, D = 11, 4
LIMITS = {
    "whole": (None, 2**20),
    "kept": (2 * V, 2**20),
    "half": (2 * V, 3 * V * 8),
    "again": (1, 0),
}
every_limit = pytest.mark.parametrize(("chunk", "keep"), LIMITS.values(), ids=LIMITS.keys())


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (2, 3), generator=generator)
    targets[1, 1] = -1
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@every_limit
def test_gradients_of_both_outputs_by_finite_differences(chunk: int | None, keep: int) -> None:
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: token_scores(h, w, targets, chunk=chunk, keep_bytes=keep), (hidden, weight)
    )


@every_limit
def test_equals_the_whole_logits(chunk: int | None, keep: int) -> None:
    """Values, and the gradient of any function of the rows' nats and log_z."""
    hidden, weight, targets = inputs()
    nats, log_z = token_scores(hidden, weight, targets, chunk=chunk, keep_bytes=keep)
    logits, real = hidden @ weight.T, targets >= 0
    expected_z = logits.logsumexp(-1).where(real, 0)
    on_target = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = (logits.logsumexp(-1) - on_target).where(real, 0)
    torch.testing.assert_close(nats, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(log_z, expected_z, rtol=1e-13, atol=1e-13)
    row_weights = torch.arange(6, dtype=torch.float64).view(2, 3) - 2
    ours = (row_weights * nats.square() + log_z.square()).sum()
    theirs = (row_weights * expected.square() + expected_z.square()).sum()
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(theirs, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_one_gradient_alone_and_backward_twice() -> None:
    hidden, weight, targets = inputs()
    both = torch.autograd.grad(token_scores(hidden, weight, targets).nats.sum(), (hidden, weight))
    for index, inputs_ in enumerate([(hidden, weight.detach()), (hidden.detach(), weight)]):
        loss = token_scores(*inputs_, targets).nats.sum()
        for _ in range(2):
            (alone,) = torch.autograd.grad(loss, [inputs_[index]], retain_graph=True)
            assert torch.equal(alone, both[index])


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight = torch.eye(2)
    nats, log_z = token_scores(hidden, weight, torch.tensor([1]))
    assert nats.item() == log_z.item() == 1e4
    nats.sum().backward()
    assert torch.equal(hidden.grad, torch.tensor([[1.0, -1.0]]))


def test_autocast_makes_the_product_in_bfloat16_and_the_softmax_in_float32() -> None:
    hidden, weight, targets = (value.detach() for value in inputs())
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        nats, log_z = token_scores(hidden, weight, targets)
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    assert nats.dtype == log_z.dtype == torch.float32
    torch.testing.assert_close(log_z, logits.logsumexp(-1).where(targets >= 0, 0))
    nats.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    exact = torch.autograd.grad(token_scores(hidden, weight, targets).nats.sum(), (hidden, weight))
    for ours, expected in zip((hidden.grad, weight.grad), exact, strict=True):
        assert 0 < (ours - expected).norm() / expected.norm() < 0.02


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that any operation makes, forward and backward, is a chunk's."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel()
                for t in (out if isinstance(out, tuple) else [out])
                if isinstance(t, Tensor)
            )
            return out

    monkeypatch.setitem(scores.CHUNK, "cpu", 5000)
    monkeypatch.setattr(scores, "KEEP_BYTES", 0)
    hidden = torch.randn(64, 2, requires_grad=True)
    weight = torch.randn(1000, 2, requires_grad=True)
    with Watch():
        nats, _ = token_scores(hidden, weight, torch.zeros(64, dtype=torch.long), keep_bytes=0)
        nats.sum().backward()
    assert max(sizes) == 5000
