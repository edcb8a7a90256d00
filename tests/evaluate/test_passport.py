"""Figures, passports and their files."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from genus.errors import EvaluationError
from genus.evaluate.passport import (
    Figure,
    Passport,
    describe,
    read_evaluation,
    write_evaluation,
)

QUALITY = Passport(
    progress=51200, ema="0.05", sampler="heun", nfe=35, guidance=1.0, seeds=(0, 7), samples=2000,
    labels="all in turn", reference="fashion-mnist/test", reference_fingerprint="abc",
    reference_samples=2000, extractor="EffLite0", extractor_sha256="f" * 64,
    preprocessing="bilinear to 64x64, antialias=False", image_format="uint8 1x32x32",
)  # fmt: skip
LIKELIHOOD = Passport(
    progress=51200, samples=100, likelihood="lower bound", dequantisation="uniform"
)
FIGURES = {
    "FD-EffLite0": Figure(612.25, None, "", QUALITY),
    "KID-EffLite0": Figure(1.5, 0.1, "", QUALITY, "standard deviation over 50 subsets of 500"),
    "bits/dim": Figure(3.125, 0.01, "bits/dim", LIKELIHOOD, "standard error"),
}


def test_passport_round_trip_keeps_every_field() -> None:
    for passport in (QUALITY, LIKELIHOOD, Passport()):
        text = json.dumps(passport.to_json())
        assert Passport.from_json(json.loads(text)) == passport
    assert set(QUALITY.to_json()) == {f.name for f in fields(Passport)}
    old = {key: value for key, value in QUALITY.to_json().items() if key != "precision"}
    assert Passport.from_json(old) == QUALITY  # files from before the field are read
    with pytest.raises(EvaluationError, match="no field hostname"):
        Passport.from_json({"hostname": "a"})


def test_evaluation_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "evaluations" / "000000051200.json"
    model = {"family": "diffusion", "parameters": 2_000_000}
    write_evaluation(FIGURES, path, model)
    assert read_evaluation(path) == (FIGURES, model)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary left
    document = json.loads(path.read_text())
    assert document["schema"] == "genus-evaluation/1"
    assert len(document["passports"]) == 2  # figures of one measurement share one
    assert document["figures"]["bits/dim"]["passport"] == 1


def test_what_is_no_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{", "{}", '{"schema": "other/1"}', "[]"):
        path.write_text(text)
        with pytest.raises(EvaluationError, match=re.escape(str(path))):
            read_evaluation(path)


def test_no_figure_without_passport_and_none_that_is_not_finite() -> None:
    with pytest.raises(EvaluationError, match="without its passport"):
        Figure(1.0, None, "", None)  # type: ignore[arg-type]
    for value, spread in ((math.nan, None), (math.inf, None), (1.0, math.nan)):
        with pytest.raises(EvaluationError, match="must be finite"):
            Figure(value, spread, "", QUALITY)


def test_the_text_for_people_shows_each_passport_under_its_figures() -> None:
    text = describe(FIGURES)
    first, second = text.split("\n\n")
    assert "FD-EffLite0   612.25\n" in first
    assert "1.5 (+- 0.1, standard deviation over 50 subsets of 500)" in first
    for value in ("0.05", "heun", "35", "0, 7", "fashion-mnist/test", "abc", "f" * 64):
        assert value in first
    assert "bits/dim      <= 3.125 bits/dim (+- 0.01, standard error)" in second
    assert "likelihood: lower bound" in second
    assert "sampler" not in second  # what does not apply is left out
    area = describe({"AUROC": Figure(0.5, None, "", LIKELIHOOD)})
    assert "<=" not in area  # a bound of the likelihood bounds nothing that is made of it
