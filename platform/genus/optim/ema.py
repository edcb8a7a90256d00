"""Exponential moving averages of weights: plain, and of power-function shape.

Power-function EMA (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", section 3) has the profile

    theta_hat(t) = (gamma + 1) / t^(gamma + 1) * int_0^t tau^gamma theta(tau) dtau:

its width is a fixed share of the training so far, and snapshots of two widths reconstruct any
other width afterwards (``reconstruct``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from genus.errors import ConfigError
from genus.optim.schedule import half_cosine
from genus.state import State, take
from genus.strategies.spread import Layout


@dataclass(frozen=True, kw_only=True)
class PowerEMAConfig:
    """Power-function EMA of several widths, with snapshots for post-hoc reconstruction."""

    widths: tuple[float, ...] = (0.05, 0.10)
    """Relative widths sigma_rel: standard deviation of the profile over the training so far."""
    snapshot_every: int = 0
    """Snapshots of all widths for post-hoc reconstruction, samples between them (0: none)."""

    def __post_init__(self) -> None:
        """ConfigError for widths that no power function has, or none at all."""
        if not self.widths or len(set(self.widths)) < len(self.widths):
            raise ConfigError(f"ema.widths={self.widths}: give one or more different widths")
        try:
            [gamma_of(width) for width in self.widths]
        except ValueError as error:
            raise ConfigError(f"ema.widths: {error}") from None

    def labels(self) -> list[str]:
        """A name for each average, which tells its width exactly."""
        return [label_of(width) for width in self.widths]

    def decays(self, samples: int, batch: int) -> list[float]:
        """beta of each average for the step from ``samples - batch`` to ``samples`` (eq. 127)."""
        share = 1 - batch / samples
        return [share ** (gamma_of(width) + 1) for width in self.widths]


@dataclass(frozen=True, kw_only=True)
class PlainEMAConfig:
    """One EMA of fixed half-life."""

    half_life: int = 500_000
    """Samples after which a weight counts half."""
    rampup: float = 0.05
    """The half-life is at most this share of the training so far (0: no ramp-up)."""
    grows: int = 0
    """The half-life grows from 0 along half a cosine over so many samples (0: it is there from the
    start)."""
    snapshot_every: int = 0
    """Snapshots, samples between them (0: none)."""

    def labels(self) -> list[str]:
        """A name for the average."""
        return ["plain"]

    def decays(self, samples: int, batch: int) -> list[float]:
        """beta for the step from ``samples - batch`` to ``samples``."""
        half_life = min(self.half_life, self.rampup * samples) if self.rampup else self.half_life
        if self.grows:
            half_life *= 1 - half_cosine(samples, self.grows)
        return [0.5 ** (batch / max(half_life, 1e-8))]


class EMA:
    """The averages of every network; ``applied`` lends them to the networks for an evaluation.

    They lie on the ranks as the weights do: where those are sharded, so are their averages.
    """

    def __init__(self, config: PowerEMAConfig | PlainEMAConfig, layout: Layout) -> None:
        """Averages start at the networks' present weights, kept in float32 or finer."""
        self.config, self._layout = config, layout
        self.averages = {
            label: [self._copy(v) for v in layout.live.values()] for label in config.labels()
        }
        self._is_narrow = any(v.dtype.itemsize < 4 for v in layout.live.values())

    @staticmethod
    def _copy(value: Tensor) -> Tensor:
        dtype = torch.promote_types(value.dtype, torch.float32)
        return value.detach().to(dtype, copy=True)

    @torch.no_grad()
    def update(self, samples: int, batch: int) -> None:
        """One step of ``batch`` samples that brought the progress to ``samples``."""
        live = list(self._layout.live.values())
        decays = self.config.decays(samples, batch)
        for average, beta in zip(self.averages.values(), decays, strict=True):
            if self._is_narrow:  # weights in bfloat16, say; lerp wants one dtype
                live = [value.to(a.dtype) for value, a in zip(live, average, strict=True)]
            torch._foreach_lerp_(average, live, 1 - beta)

    @contextmanager
    def applied(self, label: str | None = None) -> Iterator[None]:
        """Within, the networks carry the average's weights (the first one's by default)."""
        with self._layout.lent(self.averages[label or next(iter(self.averages))]):
            yield

    def state_dict(self) -> State:
        return {
            f"{label}/{name}": self._layout.stored(name, value)
            for label, average in self.averages.items()
            for name, value in zip(self._layout.live, average, strict=True)
        }

    def load_state_dict(self, state: State) -> None:
        for key, mine in self.state_dict().items():
            take(mine, state[key])

    def snapshot(self, folder: Path, samples: int, writes: bool = True) -> None:
        """Write all averages for later reconstruction; half precision as in the paper's code.

        All ranks call it, for the averages may lie on all; one ``writes``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for label, average in self.averages.items():
            tensors = {}
            for name, value in zip(self._layout.live, average, strict=True):
                whole = self._layout.whole(name, value)
                if writes:
                    tensors[name] = whole.to("cpu", torch.float16).contiguous()
            if writes:
                path = folder / f"{label}-{samples:012d}.safetensors"
                temporary = path.with_suffix(".part")
                save_file(tensors, temporary)
                temporary.replace(path)


# ---- the mathematics of power-function profiles --------------------------------------------------


def label_of(width: float) -> str:
    """A width's name: three decimals where they tell it exactly, all of them where not."""
    short = f"{width:.3f}"
    return short if float(short) == width else repr(width)


def gamma_of(sigma_rel: float) -> float:
    """gamma of the profile with relative width sigma_rel (Karras 2024, eq. 123).

    sigma_rel = sqrt((gamma+1) / ((gamma+2)^2 (gamma+3))); the real root of the cubic
    gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2) = 0.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ConfigError(f"EMA width {sigma_rel}: must lie between 0 and 0.2886 (gamma > 0)")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def profile_product(
    t_a: NDArray[np.float64],
    gamma_a: NDArray[np.float64],
    t_b: NDArray[np.float64],
    gamma_b: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Inner product of two power-function profiles (eq. 151), elementwise with broadcasting."""
    t_ratio = t_a / t_b
    exponent = np.where(t_a < t_b, gamma_b, -gamma_a)
    t_max = np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * t_ratio**exponent / ((gamma_a + gamma_b + 1) * t_max)


def solve_weights(
    times: Sequence[float], widths: Sequence[float], target_time: float, target_width: float
) -> NDArray[np.float64]:
    """Weights of the snapshots (time, width) whose sum is nearest the target profile (eq. 149).

    Least squares of the profiles: A w = b with A and b the inner products of eq. 151.
    """
    t = np.asarray(times, np.float64)
    gamma = np.array([gamma_of(width) for width in widths])
    target = np.array(target_time, np.float64)
    gram = profile_product(t[:, None], gamma[:, None], t[None, :], gamma[None, :])
    right = profile_product(t, gamma, target, np.array(gamma_of(target_width)))
    weights = np.asarray(np.linalg.lstsq(gram, right, rcond=None)[0], np.float64)
    weights /= weights.sum()  # an average of equal weights stays exact
    return weights


def last_snapshot(folder: Path) -> int:
    """Progress of the newest snapshot, samples; 0 without any."""
    return max((int(p.stem.rpartition("-")[2]) for p in folder.glob("*.safetensors")), default=0)


def reconstruct(folder: Path, width: float, samples: int | None = None) -> dict[str, Tensor]:
    """Weights 'network.key' with an EMA of any width at ``samples`` (default: the last snapshot).

    Raises ValueError when the folder holds no snapshot of a power-function EMA.
    """
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        label, _, when = path.stem.rpartition("-")
        if label != "plain":
            found.append((float(label), int(when), path))
    times = [when for _, when, _ in found]
    target = samples if samples is not None else max(times, default=0)
    found = [entry for entry in found if entry[1] <= target]
    if not found:
        raise ConfigError(f"{folder}: no snapshots; train with ema.snapshot_every=SAMPLES")
    weights = solve_weights([e[1] for e in found], [e[0] for e in found], target, width)
    total: dict[str, Tensor] = {}
    for weight, (_, _, path) in zip(weights, found, strict=True):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_tensor(key).double() * float(weight)
                total[key] = total[key] + part if key in total else part
    return {key: value.float() for key, value in total.items()}
