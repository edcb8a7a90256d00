"""Products in float8: close to bf16's, under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genus.errors import ConfigError
from genus.networks.dit import DiTConfig
from genus.parallel import World
from genus.strategies.float8 import to_float8

pytest.importorskip("torchao", reason="an extra: pip install 'genus[fp8]'")


def network() -> nn.Module:
    torch.manual_seed(0)
    net = DiTConfig(width=32, depth=2, heads=2).build(channels=1, resolution=8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def test_blocks_are_exchanged_and_nothing_else() -> None:
    plain, net = network(), network()
    count = to_float8({"denoiser": net}, emulate=True)
    changed = {n for n, m in net.named_modules() if type(m).__name__ == "Float8Linear"}
    assert (
        len(changed) == count == 2 * sum(isinstance(m, nn.Linear) for m in net.blocks[0].modules())
    )
    assert all(name.startswith("blocks.") for name in changed)
    assert list(net.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(net.state_dict())  # sampling afterwards has no need of torchao

    x, noise = torch.randn(4, 1, 8, 8), torch.rand(4)
    expected, found = plain(x, noise, None), net(x, noise, None)
    off = float((found - expected).detach().norm() / expected.detach().norm())
    assert 1e-4 < off < 0.1, off
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_float8_without_such_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="fp8 needs a GPU with float8 products"):
        World("fp8")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="fp8 needs a GPU with float8 products"):
        World()
