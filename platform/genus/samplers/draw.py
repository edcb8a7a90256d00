"""From a trained denoiser to samples: the one place where method, steps and guidance meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.errors import ConfigError
from genus.objectives.phase import Networks, SampleOptions, SamplingPlan
from genus.samplers.ancestral import ancestral, ddim
from genus.samplers.denoiser import Denoiser
from genus.samplers.dpm_solver import dpm_solver_pp_2m
from genus.samplers.guidance import Autoguided, ClassifierFree
from genus.samplers.ode import euler, heun, heun_churn

Method = Literal["euler", "heun", "heun-churn", "dpm++2m", "ddim", "ancestral"]

FAMILY, KNOWN = "a model that samples by denoising", ("steps", "method", "guidance", "guide")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to draw where ``SampleOptions`` leaves it open."""

    method: Method = "heun"
    """Sampler; heun and heun-churn call the network twice a step, the others once."""
    steps: int = 18
    """Steps of the sampler."""
    guidance: float = 1.0
    """Weight of classifier-free guidance or autoguidance; 1 is none."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"sampling.steps={self.steps}: ask for at least 1")


def plan_of(options: SampleOptions, defaults: SamplingConfig) -> SamplingPlan:
    """Method, network evaluations a sample and guidance, with the gaps filled by the defaults.

    ConfigError for what sampling by denoising does not have, such as a temperature.
    """
    options.only(FAMILY, *KNOWN)
    method = options.method or defaults.method
    steps = defaults.steps if options.steps is None else options.steps
    guidance = defaults.guidance if options.guidance is None else options.guidance
    calls = 2 * steps - 1 if method in ("heun", "heun-churn") else steps
    return SamplingPlan(f"{method}, {steps} steps", calls * (1 if guidance == 1 else 2), guidance)


@torch.no_grad()
def draw_samples(
    wrap: Callable[[nn.Module], Denoiser],
    networks: Networks,
    draws: Draws,
    label: Tensor | None,
    options: SampleOptions,
    *,
    defaults: SamplingConfig,
    shape: tuple[int, int, int],
    classes: int,
) -> Tensor:
    """(B, C, H, W) samples, one a row of ``draws``; ``wrap`` makes a network a Denoiser.

    ``label`` (B,) or None. ConfigError for an unknown method, impossible steps, or what denoising
    does not have.
    """
    options.only(FAMILY, *KNOWN)
    denoiser = wrap(networks["denoiser"])
    weight = defaults.guidance if options.guidance is None else options.guidance
    if weight != 1 and options.guide is not None:
        denoiser = Autoguided(denoiser, wrap(options.guide["denoiser"]), weight)
    elif weight != 1 and label is not None:
        denoiser = ClassifierFree(denoiser, weight, classes)
    steps = defaults.steps if options.steps is None else options.steps
    if steps < 1:
        raise ConfigError(f"{steps} sampling steps: ask for at least 1")
    sigmas = denoiser.noise_levels(steps)
    x = draws.normal("prior", shape) * sigmas[0].item()
    return solve(options.method or defaults.method, denoiser, x, sigmas, label, draws)


def solve(
    method: str, denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None, draws: Draws
) -> Tensor:
    """The sampler called ``method``, from x at ``sigmas[0]``. ConfigError for an unknown one."""
    match method:
        case "euler":
            return euler(denoiser, x, sigmas, label)
        case "heun":
            return heun(denoiser, x, sigmas, label)
        case "heun-churn":
            return heun_churn(denoiser, x, sigmas, label, draws=draws)
        case "dpm++2m":
            return dpm_solver_pp_2m(denoiser, x, sigmas, label)
        case "ddim":
            return ddim(denoiser, x, sigmas, label, draws=draws)
        case "ancestral":
            return ancestral(denoiser, x, sigmas, label, draws=draws)
    raise ConfigError(f"no sampling method '{method}'; there are: {', '.join(get_args(Method))}")
