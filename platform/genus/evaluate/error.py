"""The one error of the evaluation."""

from __future__ import annotations

from genus.errors import GenusError


class EvaluationError(GenusError):
    """A figure that can't be measured, or may not be printed: what, why and what to do."""
