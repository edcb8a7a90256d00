"""The contract between objectives and the loop, and what a family can offer beyond training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.state import State

Networks = Mapping[str, nn.Module]
"""The run's networks by name, called through ``__call__`` only: the hooks of DDP, FSDP2 and
DeepSpeed do not fire through ``.forward``."""

Loss = Callable[[Networks, Batch], tuple[Tensor, dict[str, Tensor]]]
"""(networks, micro-batch) -> (scalar mean over the rows, detached scalars for the metrics)."""


@dataclass(frozen=True)
class Phase:
    """One gradient step of an objective: ``trains`` names the networks that it updates.

    The phase is due at every step whose number (from 0) is divisible by ``every``.
    """

    name: str
    trains: tuple[str, ...]
    loss: Loss
    every: int = 1


def updates_of(phases: Sequence[Phase], network: str) -> float:
    """Gradient steps that a network takes a step of the loop, on average; 1 for those at rest."""
    return max(1.0, sum(1 / phase.every for phase in phases if network in phase.trains))


@dataclass(frozen=True, kw_only=True)
class Traits:
    """A family's row in the taxonomy of generative models."""

    density: Literal["exact", "lower bound", "estimate", "none"]
    sampling_cost: str
    principle: str
    latent: str
    architecture: str


class Objective(Protocol):
    """What the loop needs. Weights live in the networks, everything else in ``state_dict``."""

    @property
    def phases(self) -> Sequence[Phase]: ...

    @property
    def traits(self) -> Traits: ...

    def after_step(self, networks: Networks, samples: int) -> None:
        """Called once a step after all phases; ``samples`` is the progress so far."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Stateless:
    """The part of an objective that has no state beyond the weights."""

    def after_step(self, networks: Networks, samples: int) -> None:
        """Nothing."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to load."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How to draw. What is None is left to the objective's own default."""

    steps: int | None = None
    guidance: float | None = None
    method: str | None = None
    temperature: float | None = None
    """Of families that have it: scales the base distribution, or divides log-probabilities of
    levels or tokens."""
    truncation: float | None = None
    """psi of style-based generators: 1 is none, 0 the mean image."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    length: int | None = None
    """Tokens to draw."""
    beams: int | None = None
    """Hypotheses that beam search keeps."""
    length_penalty: float | None = None
    """Its exponent; 0 compares log-probabilities as they are."""
    prompt: Tensor | None = field(default=None, repr=False)
    """Tokens (T,) that the drawn ones continue."""
    guide: Networks | None = field(default=None, repr=False)
    """A weaker version of the networks to guide away from (autoguidance)."""

    def only(self, family: str, *known: str) -> None:
        """ConfigError where an option is given that is not ``known`` to the ``family``."""
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        unknown = [name for name in given if name not in known]
        if unknown:
            has = ", ".join(_flag(name) for name in known)
            raise ConfigError(f"{family} has no {_flag(unknown[0])}: leave it out (it has {has})")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class SamplingPlan:
    """What sampling with some options will do, for passports."""

    sampler: str
    """Method and its settings."""
    nfe: int
    """Network evaluations a sample."""
    guidance: float | None
    """Weight; 1 is none; None where the family has no guidance."""

    def __str__(self) -> str:
        guidance = "" if self.guidance is None else f", guidance {self.guidance:g}"
        return f"{self.sampler}, {self.nfe} NFE{guidance}"


@runtime_checkable
class CanSample(Protocol):
    def plan(self, options: SampleOptions) -> SamplingPlan:
        """What ``sample`` will do with these options."""

    def sample(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Tensor:
        """(B, C, H, W) images in [-1, 1], or (B, D) vectors in the data's unit; one row a row of
        ``draws``; ``label`` (B,) or None."""


@dataclass(frozen=True)
class LogDensity:
    """Natural-log density of each row (B,), of what kind, and its standard error where estimated.

    ``kind`` says what the number is; ``dequantisation`` on which data. ``dims`` is the number of
    dimensions that bits/dim divides by, or of tokens. ``unit`` is what a figure of it is given in:
    images in bits/dim, vectors in nats a row, text in nats a token, and a character or byte in
    bits.
    """

    nats: Tensor
    kind: Literal["exact", "lower bound", "estimate"]
    dequantisation: str
    dims: int
    standard_error: Tensor | None = None
    unit: Literal["bits/dim", "nats", "nats/token", "bits/char", "bits/byte"] = "bits/dim"
    counts: Tensor | None = None
    """(B,) tokens, characters or bytes of each row, where rows differ; None: ``dims`` of all."""


@runtime_checkable
class CanLogDensity(Protocol):
    def log_density(self, networks: Networks, batch: Batch) -> LogDensity:
        """Log density of the batch's data in their own units (pixel levels for uint8 images)."""


@runtime_checkable
class CanEncode(Protocol):
    """Families with a latent code of each sample. ``traits.latent`` says of what kind; where it
    begins with "exact", decode(encode(x)) is x."""

    def encode(self, networks: Networks, batch: Batch) -> Tensor:
        """The codes (B, ...) of the batch's data."""

    def decode(self, networks: Networks, code: Tensor, label: Tensor | None) -> Tensor:
        """What ``sample`` returns, from codes."""


@dataclass(frozen=True)
class Codes:
    """What generated images are made of, besides their class."""

    code: Tensor
    """(B, ...), in the shape of the space."""
    noise: Tensor | None = None
    """(B, N), of generators that add noise."""


class LatentSpace(Protocol):
    """Codes that a generator draws and makes images of."""

    @property
    def is_normal(self) -> bool:
        """Codes are standard normal; in many dimensions they then lie near a sphere."""

    def draw(
        self, networks: Networks, draws: Draws, label: Tensor | None, options: SampleOptions
    ) -> Codes:
        """One code a row of ``draws``."""

    def decode(self, networks: Networks, codes: Codes, label: Tensor | None) -> Tensor:
        """What ``sample`` returns, from codes; differentiable."""


@runtime_checkable
class CanWalk(Protocol):
    """Families whose codes are drawn, not inferred from data."""

    @property
    def spaces(self) -> Mapping[str, LatentSpace]:
        """By name; the first is the one to walk in."""


@runtime_checkable
class CanTranslate(Protocol):
    """Families that answer a source: with a translation, a caption, a transcript."""

    def plan(self, options: SampleOptions) -> SamplingPlan:
        """What ``translate`` will do with these options."""

    def translate(self, networks: Networks, batch: Batch, options: SampleOptions) -> Tensor:
        """Tokens (B, T) for the sources of ``batch``; after the end token, only that."""
