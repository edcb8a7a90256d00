"""ADA's transforms as a whole: identity, gradients, chance, and independence of the batch."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from genus.draws import Draws, seed_of
from genus.errors import ConfigError
from genus.objectives.augmentation.ada import ADATransforms
from genus.objectives.augmentation.chances import TRANSFORMS, Chances, Transform
from genus.objectives.augmentation.config import PIPELINES, AugmentConfig

each_pipeline = pytest.mark.parametrize("name", PIPELINES)
each_transform = pytest.mark.parametrize("name", TRANSFORMS)


def draws(rows: int, run: str = "run") -> Draws:
    return Draws.of([seed_of(run, row) for row in range(rows)])


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def transforms(name: str, *shape: int) -> ADATransforms:
    return ADATransforms(PIPELINES[name], shape)


ONE, ZERO = torch.ones(1), torch.zeros(1)


@each_pipeline
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_at_zero_nothing_happens_to_the_bit(name: str, dtype: torch.dtype, channels: int) -> None:
    x = images(8, channels, 16, 16, dtype=dtype).requires_grad_()
    y = transforms(name, channels, 16, 16)(x, ZERO, draws(8))
    assert y.dtype == dtype
    assert torch.equal(y, x)
    weight = images(8, channels, 16, 16, dtype=dtype).square()
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    assert torch.equal(gradient, weight)


def test_the_edges_of_chance() -> None:
    gates = torch.tensor([[0.0], [1 - 2**-24]]).expand(2, 64)
    for p, want in ((ZERO, [False, False]), (ONE, [True, True])):
        chances = Chances(p, TRANSFORMS, gates, gates, gates)
        assert chances.happens("hue").tolist() == want
        assert chances.bands()[0].all(1).tolist() == want


@each_pipeline
def test_at_one_something_happens_to_most(name: str) -> None:
    x = images(32, 3, 16, 16)
    changed = (transforms(name, 3, 16, 16)(x, ONE, draws(32)) != x).flatten(1).any(1)
    assert changed.sum() >= 28


@each_transform
def test_differentiable_twice(name: Transform) -> None:
    augment = ADATransforms([name], (3, 4, 4))
    x = images(2, 3, 4, 4).requires_grad_()

    def f(x: Tensor) -> Tensor:
        return augment(x, ONE, draws(2)).square()  # squared: else no second derivative is left

    assert gradcheck(f, x)
    assert gradgradcheck(f, x)


def test_the_gradient_penalty_goes_through_all_of_them() -> None:
    """R1 is taken before the augmentation; its gradient in D's weights against differences."""
    augment, x = transforms("bgcfnc", 3, 6, 6), images(3, 3, 6, 6)

    def penalty(weight: Tensor) -> Tensor:
        real = x.clone().requires_grad_()
        seen = augment(real, torch.tensor(0.7), draws(3))
        logits = torch.tanh(torch.nn.functional.conv2d(seen, weight)).sum((1, 2, 3))
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return gradient.square().sum((1, 2, 3))

    weight = images(2, 3, 3, 3).requires_grad_()
    assert penalty(weight).min() > 0
    assert gradcheck(penalty, weight)


def test_autocast_changes_nothing() -> None:
    augment, x = transforms("bgcfnc", 3, 8, 8), images(4, 3, 8, 8, dtype=torch.float32)

    def results() -> list[Tensor]:
        real = x.clone().requires_grad_()
        y = augment(real, ONE, draws(4))
        (gradient,) = torch.autograd.grad(y.pow(3).sum(), real, create_graph=True)
        return [y, gradient]

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        cast = results()
    assert torch.equal(cast[0], plain[0])
    assert cast[1].dtype == torch.float32


# What share of the images differs at p = 1. Flips draw "no flip" half of the time, turns "no turn"
# a quarter; shifts of 8-pixel images are -1, 0, 1 with probabilities 1/4, 1/2, 1/4 on each axis.
SHARE = {"xflip": 1 / 2, "rotate90": 3 / 4, "xint": 3 / 4, "lumaflip": 1 / 2}


@each_transform
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_each_happens_with_probability_p(name: Transform, p: float) -> None:
    count = 1500
    x = images(count, 3, 8, 8)
    y = ADATransforms([name], (3, 8, 8))(x, torch.tensor(p), draws(count))
    share = (y != x).flatten(1).any(1).double().mean().item()
    expected = 1 - (1 - p) ** 4 if name == "imgfilter" else p * SHARE.get(name, 1)
    assert abs(share - expected) < 4.5 * (expected * (1 - expected) / count) ** 0.5


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_windows_of_a_batch_see_what_the_batch_sees(micro: int) -> None:
    augment, x = transforms("bgcfnc", 3, 16, 16), images(8, 3, 16, 16)
    p = torch.tensor([0.6])
    whole = augment(x, p, draws(8))
    parts = [
        augment(x[i : i + micro], p, draws(8).window(i, min(i + micro, 8)))
        for i in range(0, 8, micro)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_scopes_are_independent() -> None:
    augment, x = transforms("blit", 3, 16, 16), images(64, 3, 16, 16)
    real = augment(x, ONE, draws(64).scoped("real"))
    generated = augment(x, ONE, draws(64).scoped("generated"))
    assert torch.equal(real, augment(x, ONE, draws(64).scoped("real")))
    same = (real == generated).flatten(1).all(1)
    assert same.sum() <= 2


def test_a_transform_keeps_its_numbers_when_others_are_added() -> None:
    x = images(4, 3, 8, 8)
    alone = ADATransforms(["brightness"], (3, 8, 8))(x, ONE, draws(4)) - x
    p = torch.tensor(0.999999)  # all happen, and xflip copies pixels only
    both = ADATransforms(["xflip", "brightness"], (3, 8, 8))(x, p, draws(4))
    torch.testing.assert_close(both.mean((2, 3)), (x + alone).mean((2, 3)))


def test_numbers_are_not_those_of_inference_mode() -> None:
    """The first call may be one that samples; gradients must still go through later ones."""
    augment, x = transforms("bgcf", 3, 8, 8), images(2, 3, 8, 8, dtype=torch.float32)
    with torch.inference_mode():
        augment(x, ONE, draws(2))
    real = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(augment(real, ONE, draws(2)).sum(), real)
    assert gradient.isfinite().all()


def test_compiled_it_gives_the_same() -> None:
    augment, x = transforms("bgcf", 3, 8, 8), images(4, 3, 8, 8)
    numbers = draws(4)
    want = augment(x, ONE, numbers)
    got = torch.compile(augment, backend="aot_eager")(x, ONE, numbers)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "pipeline", "shape", "message"),
    [
        ("ada", "bgc", (4, 8, 8), "1 or 3 channels"),
        ("ada", "bg", (3, 8, 12), "square"),
        ("fixed", "noise", (2,), "images"),
        ("diffaugment", "bgc", (2,), "images"),
    ],
)
def test_data_that_cannot_be_augmented_are_refused(
    kind: str, pipeline: str, shape: tuple[int, ...], message: str
) -> None:
    p = 0.5 if kind == "fixed" else 0.0
    config = AugmentConfig(kind=kind, p=p, transforms=PIPELINES[pipeline])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        config.build(shape)


@pytest.mark.parametrize(
    "wrong",
    [
        {"p": 1.5},
        {"target": 1.0},
        {"ramp": 0},
        {"interval": 0},
        {"kind": "ada", "transforms": ()},
        {"kind": "fixed"},
        {"kind": "ada", "grows": 9},
        {"p": 0.5},
        {"colour_share": 2.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="augment"):
        AugmentConfig(**wrong)  # type: ignore[arg-type]


def test_none_changes_nothing_and_the_pipelines_are_complete() -> None:
    x = images(2, 5)
    assert AugmentConfig().build((5,))(x, ONE, draws(2)) is x
    assert PIPELINES["bgcfnc"] == TRANSFORMS == get_args(Transform)


def test_images_that_are_not_square_are_moved_too() -> None:
    on: list[Transform] = [t for t in TRANSFORMS if t != "rotate90"]
    x = images(4, 1, 12, 20)
    y = ADATransforms(on, (1, 12, 20))(x, ONE, draws(4))
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_colours_can_happen_more_rarely_than_the_rest() -> None:
    rows, p = 4000, torch.full((1,), 0.8)
    chances = Chances.of(Draws.of(list(range(rows))), p, frozenset(TRANSFORMS), torch.float32, 0.5)
    for name, expected in (("hue", 0.4), ("xflip", 0.8), ("cutout", 0.8)):
        share = float(chances.happens(name).float().mean())
        assert abs(share - expected) < 4 * (expected * (1 - expected) / rows) ** 0.5
