"""GANs on a GPU: what the CPU gives, derivatives of derivatives, bf16, recomputation, runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from genus.data.batch import Batch
from genus.draws import Draws
from genus.networks.filtering import downsample, filtered_leaky_relu, low_pass, upsample
from genus.networks.gan.dcgan import DCGANConfig
from genus.networks.gan.modulated import modulated_conv
from genus.networks.gan.r3gan import R3GANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.networks.units import recompute
from genus.objectives.adversarial import AdversarialConfig
from genus.objectives.augmentation.config import PIPELINES, AugmentConfig
from genus.tracking import read_metrics
from launching import command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
SHAPE, ROWS, CLASSES = (3, 16, 16), 8, 3
STYLEGAN2 = StyleGAN2Config(
    latent=16, width=16, mapping_layers=2, channels_base=256, channels_max=32, label_layers=1
)
CONFIGS: dict[str, StyleGAN2Config | R3GANConfig | DCGANConfig] = {
    "stylegan2": STYLEGAN2,
    "stylegan2-grouped": replace(STYLEGAN2, grouped=True),
    "stylegan2-filtered": replace(STYLEGAN2, filtered=True, generator="resnet"),
    "r3gan": R3GANConfig(latent=16, widths=(32, 32, 32), blocks=1),
    "dcgan": DCGANConfig(latent=16, width=16),
}
OBJECTIVE = AdversarialConfig(r1=0.5, r2=0.5, penalty_every=2)
each_config = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products of float32 in float32."""
    places: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, was in zip(places, kept, strict=True):
        place.allow_tf32 = was


def objective_of(name: str) -> AdversarialConfig:
    """Exact R1 and R2, and path lengths where there are styles."""
    styled = name.startswith("stylegan2")
    return replace(OBJECTIVE, path_length=2.0, mixing=0.9) if styled else OBJECTIVE


def networks_of(name: str) -> dict[str, nn.Module]:
    """On the CPU, with no parameter at its start, where many are 0."""
    torch.manual_seed(0)
    networks = CONFIGS[name].build(SHAPE, CLASSES)
    for network in networks.values():
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return networks


class DrawnOnTheCPU(Draws):
    """The CPU's random numbers, for a comparison: a GPU has others of the same seed."""

    def _fill(self, kind: str, name: str, shape: object, dtype: torch.dtype) -> Tensor:
        host = Draws(self.seeds, self.group_size, torch.device("cpu"), self.start, self.stop,
                     self.scope)  # fmt: skip
        return host._fill(kind, name, shape, dtype).to(self.device)  # type: ignore[arg-type]


def batch_on(device: str) -> Batch:
    images = torch.randint(256, (ROWS, *SHAPE), generator=torch.Generator().manual_seed(1))
    fields = {
        "image": images.to(torch.uint8).to(device),
        "label": (torch.arange(ROWS) % CLASSES).to(device),
    }
    draws = DrawnOnTheCPU(list(range(ROWS)), 1, torch.device(device), 0, ROWS)
    return Batch(fields, torch.arange(ROWS), 0, draws)


def gradients(
    networks: dict[str, nn.Module], objective: AdversarialConfig, device: str, bf16: bool = False
) -> dict[str, Tensor]:
    """Loss of each phase and the gradients of what it trains, on the CPU."""
    made = objective.build(networks, SHAPE, CLASSES)
    for network in networks.values():
        network.to(device)
    found = {}
    for phase in made.phases:
        for name, network in networks.items():
            network.requires_grad_(name in phase.trains).zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss, _ = phase.loss(networks, batch_on(device).scoped(phase.name))
        loss.backward()  # type: ignore[no-untyped-call]
        found[phase.name] = loss.detach().float().cpu()
        for name in phase.trains:
            for key, parameter in networks[name].named_parameters():
                if parameter.grad is not None:
                    found[f"{phase.name}/{name}.{key}"] = parameter.grad.float().cpu()
    return found


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], close: float) -> None:
    """All gradients of a phase together, relative to their size."""
    assert found.keys() == expected.keys()
    for phase in {key.partition("/")[0] for key in found}:
        keys = [key for key in found if key.startswith(phase)]
        off = math.sqrt(sum(float((found[k] - expected[k]).square().sum()) for k in keys))
        assert off < close * math.sqrt(sum(float(expected[k].square().sum()) for k in keys)), phase


@each_config
def test_the_gpu_gives_what_the_cpu_gives(name: str) -> None:
    """Losses and gradients of all phases, those of R1, R2 and path lengths among them."""
    networks, objective = networks_of(name), objective_of(name)
    expected = gradients(networks, objective, "cpu")
    compare(gradients(networks, objective, "cuda"), expected, 1e-3)


@pytest.mark.parametrize("pipeline", ["bgc", "bgcfnc"])
def test_augmentation_on_the_gpu_is_the_cpus(pipeline: str) -> None:
    """The images, and what R1 through them gives the discriminator."""
    augment = AugmentConfig(kind="ada", p=0.7, transforms=PIPELINES[pipeline])
    made, images = augment.build(SHAPE), torch.rand(ROWS, *SHAPE) * 2 - 1
    shown = [
        made(images.to(device), torch.full((1,), 0.7, device=device), batch_on(device).draws).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(shown[1], shown[0], rtol=1e-4, atol=1e-4)
    networks = networks_of("stylegan2")
    objective = replace(objective_of("stylegan2"), augment=augment)
    expected = gradients(networks, objective, "cpu")
    compare(gradients(networks, objective, "cuda"), expected, 1e-3)


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "low_pass": low_pass,
    "downsample": downsample,
    "upsample": upsample,
    "filtered_leaky_relu": filtered_leaky_relu,
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_have_all_derivatives(name: str) -> None:
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, device="cuda", requires_grad=True)
    torch.testing.assert_close(FILTERS[name](x).cpu(), FILTERS[name](x.cpu()))

    def squared(x: Tensor) -> Tensor:  # else no second derivative is left
        return FILTERS[name](x).square()

    # depthwise convolutions of cuDNN add in an order of their own
    assert gradcheck(squared, x, nondet_tol=1e-9)
    assert gradgradcheck(squared, x, nondet_tol=1e-9)


def test_augmentation_has_second_derivatives() -> None:
    shape = (3, 6, 6)
    made = AugmentConfig(kind="ada", transforms=PIPELINES["bgcfnc"]).build(shape)
    x = torch.randn(2, *shape, dtype=torch.float64, device="cuda", requires_grad=True)
    p, draws = torch.ones(1, device="cuda"), Draws.of([1, 2], device="cuda")

    def squared(x: Tensor) -> Tensor:
        return made(x, p, draws).square()

    assert gradcheck(squared, x, nondet_tol=1e-9, fast_mode=True)
    assert gradgradcheck(squared, x, nondet_tol=1e-9, fast_mode=True)


@pytest.mark.parametrize("up", [False, True])
def test_both_ways_of_modulated_convolution_agree(up: bool) -> None:
    sizes = (4, 16, 8, 8), (32, 16, 3, 3), (4, 16)
    inputs = [torch.randn(*size, device="cuda", requires_grad=True) for size in sizes]
    ways = []
    for grouped in (False, True):
        y = modulated_conv(*inputs, up=up, grouped=grouped)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        slopes = sum(part.square().sum() for part in first)
        assert isinstance(slopes, Tensor)
        ways.append([y, *first, *torch.autograd.grad(slopes, inputs)])
    for scaled, own in zip(*ways, strict=True):
        assert float((scaled - own).detach().norm()) < 1e-4 * float(own.detach().norm())


@pytest.mark.parametrize("name", ["stylegan2", "r3gan"])
def test_bf16_phases_point_where_exact_ones_do(name: str) -> None:
    """Autocast rounds each product to 8 bits, and the second derivatives' too."""
    networks, objective = networks_of(name), objective_of(name)
    exact = gradients(networks, objective, "cuda")
    rough = gradients(networks, objective, "cuda", bf16=True)
    assert all(bool(value.isfinite().all()) for value in rough.values())
    for phase in {key.partition("/")[0] for key in exact}:
        keys = [key for key in exact if key.startswith(f"{phase}/")]
        a, b = (torch.cat([part[k].flatten() for k in keys]) for part in (exact, rough))
        assert float(torch.cosine_similarity(a, b, dim=0)) > 0.95, phase


@each_config
def test_recomputation_changes_no_gradient(name: str) -> None:
    networks, objective = networks_of(name), objective_of(name)
    expected = gradients(networks, objective, "cuda")
    for network in networks.values():
        recompute(network)
    compare(gradients(networks, objective, "cuda"), expected, 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_recipe_trains_on_a_gpu(precision: str, tmp_path: Path) -> None:
    words = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "run.name=run")
    said = (*words, f"train.precision={precision}")
    run(command(1, *said, recipe="recipes/gan.py"), tmp_path, cuda=True)
    rows = [row for row in read_metrics(tmp_path / "run") if "step" in row]
    assert rows
    for row in rows:
        assert all(math.isfinite(row[f"{name}/loss"]) for name in ("discriminator", "generator"))
    assert not any("skipped_ids" in row for row in read_metrics(tmp_path / "run"))


def test_the_recipe_compiles_without_second_derivatives(tmp_path: Path) -> None:
    words = ("--preset", "tiny", "tracking.wandb=off", "run.root=.", "run.name=run")
    single = ("objective.penalty=finite-difference", "objective.path_length=0")
    said = (*words, *single, "objective.mixing=0", "train.compile=true", "train.precision=bf16")
    run(command(1, *said, recipe="recipes/gan.py"), tmp_path, cuda=True)
    assert [row for row in read_metrics(tmp_path / "run") if "step" in row]


def test_all_thousand_stacked_digits_are_covered(tmp_path: Path) -> None:
    """The whole run that docs/gan.md shows of an hour on one core, with twice the features."""
    said = ("--preset", "stacked-mnist", "tracking.wandb=off", "run.root=.", "run.name=run")
    more = ("network.width=64", "train.evaluate_every=1200000", "train.evaluate_samples=25600")
    run(command(1, *said, *more, recipe="recipes/gan.py"), tmp_path, cuda=True, timeout=1800)
    last = [row for row in read_metrics(tmp_path / "run") if "quality/mode KL" in row][-1]
    assert last["quality/modes covered"] >= 995
    assert last["quality/mode KL"] < 0.08
