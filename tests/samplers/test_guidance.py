"""Guided scores on a Gaussian mixture equal the formulas, by autograd of the exact densities."""

from __future__ import annotations

import pytest
import torch

from closed_form import MixtureDenoiser
from genus.draws import Draws
from genus.samplers.guidance import Autoguided, ClassifierFree

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.2, -1.2]], dtype=torch.float64).view(3, 2, 1, 1)
EXACT = MixtureDenoiser(MEANS, std=0.3)
LABEL = torch.tensor([0, 1, 2, 0, 1])
X = Draws.of(range(5)).normal("x", (2, 1, 1), torch.float64)
SIGMA = torch.tensor([0.1, 0.3, 1.0, 2.0, 5.0], dtype=torch.float64)


def score(denoiser: MixtureDenoiser, label: torch.Tensor | None) -> torch.Tensor:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.log_density(x, SIGMA, label).sum(), x)
    return gradient


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_guidance(weight: float) -> None:
    """(D_w - x) / sigma^2 = (1 - w) grad ln p(x) + w grad ln p(x | label)."""
    guided = ClassifierFree(EXACT, weight, classes=3)
    expected = (1 - weight) * score(EXACT, None) + weight * score(EXACT, LABEL)
    found = (guided(X, SIGMA, LABEL) - X) / SIGMA.view(-1, 1, 1, 1) ** 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_weights_one_and_zero_and_no_label() -> None:
    one, zero = (ClassifierFree(EXACT, w, classes=3)(X, SIGMA, LABEL) for w in (1.0, 0.0))
    torch.testing.assert_close(one, EXACT(X, SIGMA, LABEL), rtol=1e-14, atol=1e-14)
    assert torch.equal(zero, EXACT(X, SIGMA))
    assert torch.equal(ClassifierFree(EXACT, 7.0, classes=3)(X, SIGMA), EXACT(X, SIGMA))
    nothing = torch.full_like(LABEL, 3)
    torch.testing.assert_close(
        ClassifierFree(EXACT, 7.0, classes=3)(X, SIGMA, nothing), EXACT(X, SIGMA)
    )


def test_both_halves_go_through_one_call() -> None:
    denoiser = MixtureDenoiser(MEANS, std=0.3)
    ClassifierFree(denoiser, 2.0, classes=3)(X, torch.tensor(1.0), LABEL)
    assert denoiser.calls == [10]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("label", [LABEL, None], ids=["label", "no label"])
def test_autoguidance(weight: float, label: torch.Tensor | None) -> None:
    weaker = MixtureDenoiser(MEANS, std=0.9)
    guided = Autoguided(EXACT, weaker, weight)
    expected = (1 - weight) * score(weaker, label) + weight * score(EXACT, label)
    found = (guided(X, SIGMA, label) - X) / SIGMA.view(-1, 1, 1, 1) ** 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_wrappers_are_denoisers() -> None:
    for guided in (ClassifierFree(EXACT, 2.0, 3), Autoguided(EXACT, EXACT, 2.0)):
        assert (guided.sigma_min, guided.sigma_max) == (EXACT.sigma_min, EXACT.sigma_max)
        assert torch.equal(guided.noise_levels(5), EXACT.noise_levels(5))
