"""Each network of a GAN, with each regulariser, under each strategy: one process's gradients, or a
refusal. What this finds is the table of docs/gan.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch._functorch.config as compile_config
from gan_gradients import NETWORKS, REGULARISERS, is_possible
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.loop import TrainConfig
from genus.networks.gan.mlp import MLPGANConfig
from genus.objectives.adversarial import AdversarialConfig
from launching import ROOT
from ranks import run_ranks

STRATEGIES = {
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "hybrid": "hybrid",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
}
COMPILED = "train.compile"
CASES = [(n, r) for n in NETWORKS for r in REGULARISERS if is_possible(n, r)]
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    script = Path(__file__).with_name("gan_gradients.py")
    folder, weights = tmp_path_factory.mktemp("gan"), {}
    two = [s for s in STRATEGIES if s != "hybrid"]
    for size, strategies in ((1, ["ddp"]), (2, two), (4, ["hybrid"])):
        out = folder / f"{size}.pt"
        run_ranks(script, str(out), *strategies, size=size, timeout=900)
        got = torch.load(out, weights_only=True)
        weights |= {f"one/{key.partition('/')[2]}" if size == 1 else key: value
                    for key, value in got.items()}  # fmt: skip
    return weights


def of(found: Found, who: str, network: str, regulariser: str) -> Found:
    begun = f"{who}/{network}/{regulariser}/"
    return {k.removeprefix(begun): v for k, v in found.items() if k.startswith(begun)}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "regulariser"), CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradients_of_one_process(
    found: Found, strategy: str, network: str, regulariser: str
) -> None:
    """Weights that moved by their gradients, a step of every phase, in micro-batches."""
    ours = of(found, strategy, network, regulariser)
    if told_of(ours) == "refused":
        return
    alone = of(found, "one", network, regulariser)
    assert ours.keys() == alone.keys()
    for name, value in alone.items():
        assert (ours[name] - value).abs().max() < 1e-6, name
    if regulariser != "none":  # or the table would say nothing
        bare = of(found, "one", network, "none")
        assert any((alone[name] - bare[name]).abs().max() > 2e-5 for name in bare)


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_was_found(found: Found) -> None:
    text = (ROOT / "docs" / "gan.md").read_text()
    row = r"^\| ([\w ]+), ([^|]+?) \|((?: (?:yes|no|refused) \|)+)$"
    rows = re.findall(row, text, re.MULTILINE)
    told = {(n, r): re.findall(r"\w+", cells) for n, r, cells in rows}
    assert told.keys() == set(CASES)
    for (network, regulariser), cells in told.items():
        expected = [told_of(of(found, s, network, regulariser)) for s in STRATEGIES]
        compiles = is_compiled(regulariser)
        assert cells == [*expected, "yes" if compiles else "refused"], (network, regulariser)


def told_of(outcome: Found) -> str:
    """A cell of the table; a refusal must say what to do instead."""
    refusals = [key for key in outcome if key.startswith("refused: ")]
    assert all("take" in refusal or "set" in refusal for refusal in refusals), refusals
    return "refused" if refusals else "yes" if outcome else "no"


def is_compiled(regulariser: str) -> bool:
    try:
        AdversarialConfig(**REGULARISERS[regulariser]).check(TrainConfig(compile=True))
    except ConfigError:
        return False
    return True


def test_what_compiled_networks_can_not_have_is_refused_and_no_more() -> None:
    assert {r for r in REGULARISERS if is_compiled(r)} == {"none", "R1 + R2 by finite differences"}
    train = TrainConfig(compile=True)
    with pytest.raises(ConfigError, match="penalty=finite-difference"):
        AdversarialConfig(r1=1.0).check(train)
    with pytest.raises(ConfigError, match="path_length=0"):
        AdversarialConfig(path_length=2.0).check(train)


@pytest.mark.slow
def test_torch_still_can_not_differentiate_compiled_networks_twice() -> None:
    """The reason of the refusal: should this pass one day, the refusal can go."""
    network = MLPGANConfig(width=4, depth=1).build((2,), 0)["discriminator"]
    network.compile(backend="aot_eager")
    x = torch.randn(3, 2, requires_grad=True)
    # Donated buffers are refused first, but only where sizes are dynamic: that depends on what the
    # process compiled before.
    with compile_config.patch(donated_buffer=False):
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            slope.square().sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_a_finite_difference_trains_compiled_networks_as_it_does_others() -> None:
    config = AdversarialConfig(**REGULARISERS["R1 + R2 by finite differences"])
    made, shape = NETWORKS["DCGAN"]
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        networks = made.build(shape, 0)
        if compiled:
            for network in networks.values():
                network.compile(backend="aot_eager")
        losses.append(_loss(config, networks, shape))
    assert torch.allclose(losses[0], losses[1], atol=1e-6)


def _loss(
    config: AdversarialConfig, networks: dict[str, nn.Module], shape: tuple[int, ...]
) -> Tensor:
    from genus.data.batch import Batch
    from genus.draws import Draws

    image = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    batch = Batch({"image": image}, torch.arange(4), 0, Draws.of(list(range(4))))
    loss, _ = config.build(networks, shape, 0).discriminator_loss(networks, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = [
        p.grad.flatten() for p in networks["discriminator"].parameters() if p.grad is not None
    ]
    return torch.cat([loss.detach()[None], *slopes])
