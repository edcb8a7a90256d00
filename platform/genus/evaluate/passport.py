"""Figures that carry how they were measured: a figure without its passport is not printed.

``write_evaluation`` keeps them as ``evaluations/*.json`` in a run folder:

    {"schema": "genus-evaluation/1", "model": {...}, "passports": [{...}, ...],
     "figures": {"FD-EffLite0": {"value": .., "spread": .., "spread_kind": .., "unit": ..,
                                 "passport": 0}, ...}}

where a figure names its passport by number, and "model" is whatever describes the model in a table
over families (name, family, preset, traits, parameters).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from genus.atomic import replacing
from genus.errors import EvaluationError

SCHEMA = "genus-evaluation/1"


@dataclass(frozen=True, kw_only=True)
class Passport:
    """How a figure was measured. What does not apply to it is None. No host, path or date: two
    machines that measure the same way write the same passport."""

    progress: int | None = None
    """Training samples (or tokens) that the checkpoint had seen."""
    ema: str | None = None
    """Weight average that was used, as its width or label; "none" for the raw weights."""
    sampler: str | None = None
    """Sampling method and its settings."""
    nfe: int | None = None
    """Network evaluations a sample."""
    guidance: float | None = None
    """Weight of classifier-free guidance or autoguidance; 1 is none."""
    seeds: tuple[int, ...] = ()
    """Seeds of the samples, subsets and estimators."""
    samples: int | None = None
    """Generated samples; for a likelihood, the test samples that were scored."""
    labels: str | None = None
    """How the samples' classes were chosen."""
    reference: str | None = None
    """Address of the real data."""
    reference_fingerprint: str | None = None
    """Hash of the real data's content and order."""
    reference_samples: int | None = None
    """Real samples that were compared with: the reference's first ones."""
    extractor: str | None = None
    """Name of the feature network."""
    extractor_sha256: str | None = None
    """Hash of the file with its weights."""
    preprocessing: str | None = None
    """Crop, resize and normalisation before the feature network."""
    image_format: str | None = None
    """Type and shape of the images as compared."""
    modes: str | None = None
    """What the modes are, and which samples count as one's."""
    likelihood: str | None = None
    """"exact", "lower bound" (of the log density) or "estimate"."""
    dequantisation: str | None = None
    """On which data the density is: uniform noise of one level, none, ..."""
    scoring: str | None = None
    """How answers were compared with what is right: sacrebleu's signature, or in words."""
    precision: str | None = None
    """Floating point of the networks, where it is not float32."""
    outliers: str | None = None
    """Address of the data that a score is to tell from the reference."""
    outliers_fingerprint: str | None = None
    """Hash of their content and order."""

    def to_json(self) -> dict[str, Any]:
        """All fields, in their order, as JSON values."""
        return {**asdict(self), "seeds": list(self.seeds)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Passport:
        """The inverse of ``to_json``. EvaluationError for a field that no passport has."""
        unknown = sorted(set(values) - {f.name for f in fields(Passport)})
        if unknown:
            raise EvaluationError(f"a passport has no field {', '.join(unknown)}")
        return Passport(**{**values, "seeds": tuple(values.get("seeds", ()))})


@dataclass(frozen=True)
class Figure:
    """A measured number. Raises EvaluationError when it is not finite."""

    value: float
    spread: float | None
    """Its uncertainty in the same unit, of the kind that ``spread_kind`` says; None: not known."""
    unit: str
    """Empty for a pure number."""
    passport: Passport
    spread_kind: str = ""
    """"standard error", "standard deviation over 50 subsets of 500", ..."""

    def __post_init__(self) -> None:
        if not isinstance(self.passport, Passport):
            raise EvaluationError("a figure without its passport is not printed: give its Passport")
        if not all(math.isfinite(x) for x in (self.value, self.spread or 0.0)):
            raise EvaluationError(
                f"a figure must be finite: {self.value} +- {self.spread} {self.unit}".rstrip()
            )


def describe(figures: Mapping[str, Figure]) -> str:
    """Figures and, beneath those that share one, their passport, as plain text for a person."""
    lines: list[str] = []
    width = max(map(len, figures), default=0)
    for number, passport in enumerate(_passports(figures)):
        lines += [""] if number else []
        for name, figure in figures.items():
            if figure.passport == passport:
                lines.append(f"{name:<{width}}  {_number(figure)}")
        lines += [
            f"    {key.replace('_', ' ')}: {_plain(value)}"
            for key, value in passport.to_json().items()
            if value is not None and value != []
        ]
    return "\n".join(lines)


def write_evaluation(
    figures: Mapping[str, Figure], path: Path, model: Mapping[str, Any] | None = None
) -> None:
    """Write the JSON that the module's docstring shows; whoever reads never sees half a file.

    ``path``: ``RUN/evaluations/NAME.json``, say. Its folder is made.
    """
    passports = _passports(figures)
    document = {
        "schema": SCHEMA,
        "model": dict(model or {}),
        "passports": [passport.to_json() for passport in passports],
        "figures": {
            name: {
                "value": figure.value,
                "spread": figure.spread,
                "spread_kind": figure.spread_kind,
                "unit": figure.unit,
                "passport": passports.index(figure.passport),
            }
            for name, figure in figures.items()
        },
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_evaluation(path: Path) -> tuple[dict[str, Figure], dict[str, Any]]:
    """The figures and the model's description. EvaluationError for any other file."""
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise EvaluationError(f"{path} has schema {document['schema']}, not {SCHEMA}")
        passports = [Passport.from_json(values) for values in document["passports"]]
        figures = {
            name: Figure(**{**values, "passport": passports[values["passport"]]})
            for name, values in document["figures"].items()
        }
        return figures, document["model"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise EvaluationError(f"{path} is no evaluation: {error!r}") from None


def _passports(figures: Mapping[str, Figure]) -> list[Passport]:
    """The different passports, in the order of their first figure."""
    return list(dict.fromkeys(figure.passport for figure in figures.values()))


def _number(figure: Figure) -> str:
    is_bound = figure.passport.likelihood == "lower bound" and figure.unit in ("bits/dim", "nats")
    sign = "<= " if is_bound else ""
    text = f"{sign}{figure.value:.5g} {figure.unit}".rstrip()
    if figure.spread is None:
        return text
    return f"{text} (+- {figure.spread:.2g}, {figure.spread_kind or 'spread'})"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
