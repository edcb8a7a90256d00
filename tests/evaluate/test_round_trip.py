"""The figures of a round trip."""

from __future__ import annotations

import math

import pytest
import torch

from genus.errors import EvaluationError
from genus.evaluate.passport import Passport
from genus.evaluate.round_trip import round_trip_figures


def test_largest_error_and_share_of_pixels() -> None:
    first, second = torch.zeros(3, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    first[1, 0, 0, 0], second[0, 0, 1, 1], second[0, 0, 0, 1] = 0.4, 0.75, 0.6
    figures = round_trip_figures([first, second], Passport(progress=7), levels=True)
    assert list(figures) == ["round trip", "pixels off"]
    assert figures["round trip"].value == pytest.approx(0.75)
    assert figures["round trip"].unit == "levels"
    assert figures["pixels off"].value == 2 / 16
    assert figures["round trip"].passport == Passport(progress=7, samples=4)


def test_vectors_have_no_pixels() -> None:
    figures = round_trip_figures([torch.full((2, 3), 0.7)], Passport(), levels=False)
    assert list(figures) == ["round trip"]
    assert figures["round trip"].unit == ""


def test_samples_that_the_inverse_loses_are_counted() -> None:
    errors = torch.zeros(4, 2)
    errors[0, 1], errors[3, 0], errors[2, 0] = math.nan, math.inf, 0.2
    figures = round_trip_figures([errors], Passport(), levels=True)
    assert figures["round trip"].value == pytest.approx(0.2)
    assert figures["pixels off"].value == 2 / 8
    assert figures["samples lost"].value == 0.5
    for nothing in ([torch.full((2, 3), math.nan)], []):
        with pytest.raises(EvaluationError, match="none of"):
            round_trip_figures(nothing, Passport(), levels=True)
