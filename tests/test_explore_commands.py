"""genus sample, evaluate, interpolate and anomaly on an exact model whose answers are known."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genus import cli
from genus.commands_anomaly import in_channels
from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.data.pack import pack
from genus.data.stream import DataConfig, iterate_once, read_info
from genus.draws import Draws
from genus.evaluate.grid import GAP
from genus.evaluate.passport import read_evaluation
from genus.model import Model, in_double, load_model
from genus.objectives.edm import EDMConfig
from launching import ROOT, run
from rotation import Rotation, RotationLikelihood

SIDE = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, data/test/ and two outlier sets, and a trained run."""
    folder = tmp_path_factory.mktemp("rotation")
    fashion = DataConfig(url=str(ROOT / "tests/data/fashion-1000"), size=SIDE, fit="resize")
    batch = next(iterate_once(fashion, 1000))
    images, labels = batch["image"][:, 0].numpy(), batch["label"].numpy()
    generator = np.random.default_rng(0)
    sets = {
        "data": (images[:600], labels[:600]),
        "data/test": (images[600:], labels[600:]),
        # near the middle of the model's density, where no image is
        "grey": (np.full((300, SIDE, SIDE), 70, np.uint8), None),
        # in colour, without labels
        "noise": (
            generator.integers(0, 2, (300, SIDE, SIDE, 1), np.uint8).repeat(3, 3) * 255,
            None,
        ),
    }
    for name, (image, label) in sets.items():
        fields = {"image": image} if label is None else {"image": image, "label": label}
        np.savez(folder / "arrays.npz", **fields)
        pack(folder / "arrays.npz", folder / name)
    recipe = [sys.executable, str(ROOT / "tests" / "rotation.py"), "run.name=run", "run.root=."]
    run([*recipe, "data.url=data"], folder)
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.chdir(place)
    yield
    torch.set_num_threads(threads)


def genus(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> str:
    code = cli.main([*words, "--device", "cpu"])
    said = capsys.readouterr()
    assert code == expect, said.err
    return said.err if expect else said.out


def last_evaluation() -> tuple[dict[str, Any], dict[str, Any]]:
    return read_evaluation(max(Path("run/evaluations").glob("*"), key=lambda p: p.stat().st_mtime))


def tiles(path: str, columns: int) -> Tensor:
    """(rows, columns, H, W) of a grid whose tiles are drawn twice as large."""
    picture = torch.from_numpy(np.asarray(Image.open(path)).copy())
    step = 2 * SIDE + GAP
    rows = (picture.shape[0] + GAP) // step
    assert picture.shape == (rows * step - GAP, columns * step - GAP)
    found = [
        picture[r * step : r * step + 2 * SIDE : 2, c * step : c * step + 2 * SIDE : 2]
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(found).unflatten(0, (rows, columns))


def test_temperature_scales_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    text = genus(capsys, "sample", "run", "--temperature", "0", "--n", "20", "--out", "cold.npz")
    assert "temperature 0, 1 NFE" in text
    flow = load_model(Path("run")).networks["flow"]
    with np.load("cold.npz") as file:
        images, labels = file["images"], file["labels"]
    mean = ((flow.mean.detach().double() + 1) * 128 - 0.5).round()  # what is left is the mean
    assert np.array_equal(images, np.broadcast_to(mean[labels].view(-1, 1, 1, 1), images.shape))


def test_evaluate_gives_the_closed_form_density(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "run", "--n", "0", "--likelihood", "300"]
    text = genus(capsys, *words)
    assert "round trip" in text
    figures = last_evaluation()[0]
    assert list(figures) == ["bits/dim", "round trip", "pixels off"]
    flow = load_model(Path("run")).networks["flow"].double()
    batch = next(iterate_once(DataConfig(url="data/test"), 300, limit=300))
    noisy = batch["image"].double() + batch.draws.uniform("dequantise", (1, SIDE, SIDE))
    mean = flow.mean.detach()[batch["label"]].view(-1, 1, 1, 1)
    x = noisy / 128 - 1
    normal = torch.distributions.Normal(mean, flow.log_scale.detach().exp())
    bits = -(normal.log_prob(x).flatten(1).mean(1) - math.log(128)) / math.log(2)
    assert figures["bits/dim"].value == pytest.approx(float(bits.mean()), abs=1e-5)
    assert figures["bits/dim"].passport.precision is None
    assert 1e-7 < figures["round trip"].value < 1e-2
    assert figures["pixels off"].value == 0
    assert figures["round trip"].passport.samples == 300

    text = genus(capsys, *words, "--double")
    assert "precision: float64" in text
    double = last_evaluation()[0]
    assert double["bits/dim"].value == pytest.approx(figures["bits/dim"].value, abs=1e-4)
    assert double["round trip"].value < 1e-10  # the matrix is orthogonal to float32 only


def test_networks_in_double_take_inputs_of_float32() -> None:
    single = torch.nn.Bilinear(3, 3, 2)
    a, b = torch.randn(2, 4, 3).unbind()
    double = in_double({"network": single})["network"]
    out = double(a, input2=b)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), single(a, b))
    assert single.weight.dtype == torch.float32  # a copy, not the network itself


def test_evaluate_measures_the_round_trip_without_being_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    genus(capsys, "evaluate", "run", "--n", "0")
    figures = last_evaluation()[0]
    assert list(figures) == ["round trip", "pixels off"]
    assert figures["round trip"].passport.samples == 400  # 500, but there are no more


def test_interpolation_walks_between_test_images_of_one_class(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["interpolate", "run", "--steps", "5", "--seed", "3", "--out"]
    text = genus(capsys, *words, "line.png", "--pairs", "12", "--linear")
    assert "12 pairs along a straight line" in text
    line = tiles("line.png", 5)
    genus(capsys, *words, "circle.png", "--pairs", "4")
    circle = tiles("circle.png", 5)
    assert line.shape == (12, 5, SIDE, SIDE)

    batch = next(iterate_once(DataConfig(url="data/test"), 400))
    ends = []
    for pair, row in enumerate(line):
        for end in (row[0], row[4]):  # decoded exactly to what was encoded
            (match,) = torch.nonzero((batch["image"][:, 0] == end).all((1, 2)), as_tuple=True)
            assert batch["label"][match].tolist() == [pair % 10]
            ends.append(int(match[0]))
    assert len(set(ends)) == 24
    # codes are linear in the images: so is the straight line, up to rounding
    first, last = line[:, :1].double(), line[:, 4:].double()
    t = torch.arange(5).view(1, 5, 1, 1) / 4
    assert ((1 - t) * first + t * last - line).abs().max() <= 0.5 + 1e-6
    # the great circle has the same ends, whatever the number of pairs, and another middle
    assert torch.equal(circle[:, [0, 4]], line[:4, [0, 4]])
    assert (circle[:, 2].int() - line[:4, 2].int()).abs().max() > 3

    genus(capsys, *words, "one.png", "--pairs", "2", "--class", "1")
    one = tiles("one.png", 5)
    assert torch.equal(one[0, 0], line[1, 0])  # the first pair of class 1
    assert torch.equal(one[1, 0], line[11, 0])  # and its second
    error = genus(capsys, *words, "many.png", "--pairs", "500", expect=2)
    assert "too few images of a class" in error
    assert "2 ends" in genus(capsys, "interpolate", "run", "--steps", "1", expect=2)


def test_anomaly_tells_where_raw_likelihood_fails(capsys: pytest.CaptureFixture[str]) -> None:
    text = genus(capsys, "anomaly", "run", "--n", "200", "--outliers", "grey", "noise")
    table, passports = text.split("\n\n", 1)
    assert "grey: the model finds these outliers MORE likely" in table
    assert "noise: the model" not in table
    assert "outliers: grey" in passports
    figures = last_evaluation()[0]
    assert figures["AUROC nll vs grey"].value < 0.01
    assert figures["AUROC typicality vs grey"].value > 0.6
    assert figures["AUROC nll - PNG vs grey"].value > figures["AUROC nll vs grey"].value
    assert figures["AUROC nll vs noise"].value > 0.99
    grey = figures["AUROC nll vs grey"].passport
    assert (grey.samples, grey.reference, grey.outliers) == (200, "data/test", "grey")
    assert grey.labels == "mixture of all classes"
    assert figures["bits/dim of grey"].value < figures["bits/dim of data/test"].value
    # every grey image has the same density but for its noise
    flow = load_model(Path("run")).networks["flow"].double()
    noise = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (70 + noise) / 128 - 1
    normal = torch.distributions.Normal(flow.mean.detach(), flow.log_scale.detach().exp())
    dims = SIDE**2
    rows = normal.log_prob(x[:, None]).unflatten(0, (-1, 50)).mean(1) * dims
    nats = rows.logsumexp(1).mean() - math.log(10) - dims * math.log(128)
    bits = -float(nats) / (dims * math.log(2))
    assert figures["bits/dim of grey"].value == pytest.approx(bits, abs=0.02)


def test_outliers_get_the_models_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    batch = Batch({"image": colour}, torch.arange(2), 0, Draws.of([0, 1]))
    grey = in_channels(batch, 1)["image"]
    for mine, one in zip(grey, colour, strict=True):
        luma = Image.fromarray(one.permute(1, 2, 0).numpy()).convert("L")
        assert np.array_equal(mine[0].numpy(), np.asarray(luma))
    batch = Batch({"image": grey}, torch.arange(2), 0, Draws.of([0, 1]))
    assert torch.equal(in_channels(batch, 3)["image"], grey.repeat(1, 3, 1, 1))
    assert in_channels(batch, 1) is batch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["anomaly", "run", "--n", "500", "--outliers", "grey"], "take 2 to 400"),
        (["anomaly", "run", "--n", "1", "--outliers", "grey"], "--n 1: take 2 to"),
        (["anomaly", "run", "--n", "100", "--outliers", "nowhere"], "nowhere"),
        (["interpolate", "run", "--class", "10"], "classes 0 to 9"),
        (["evaluate", "run", "--n", "0", "--reference", "nowhere"], "nowhere"),
    ],
)
def test_wrong_requests(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in genus(capsys, *words, expect=2)


def test_inliers_are_not_taken_from_the_training_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data/test").rename("aside")
    try:
        words = ["anomaly", "run", "--n", "100", "--outliers", "grey"]
        assert "no test split" in genus(capsys, *words, expect=2)
        assert "aside" in genus(capsys, *words, "--reference", "aside")
    finally:
        Path("aside").rename("data/test")


# ---- models that are not trained -----------------------------------------------------------------


class Config:
    """The part of a run's config that the commands ask for."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data


def lend(monkeypatch: pytest.MonkeyPatch, objective: Any, network: Any, info: DataInfo) -> None:
    """Let the commands find this model in the run folder."""
    config = Config(DataConfig(url=info.url))
    name = "flow" if isinstance(network, Rotation) else "denoiser"
    model = Model(Path("run"), config, info, {name: network}, objective, 7, "none", "none")
    monkeypatch.setattr("genus.arguments.load_model", lambda *arguments: model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sample", "--temperature", "0.5"],
            "a model that samples by denoising has no --temperature",
        ),
        (
            ["evaluate", "--temperature", "0.5"],
            "a model that samples by denoising has no --temperature",
        ),
        (["evaluate", "--double"], "--double is for exact densities"),
        (["interpolate"], "encodes and decodes, such as normalizing flows"),
    ],
)
def test_diffusion_has_no_temperature_no_double_and_no_codes(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = EDMConfig().build((1, SIDE, SIDE), 10)
    lend(monkeypatch, objective, torch.nn.Identity(), read_info(DataConfig(url="data")))
    assert message in genus(capsys, words[0], "run", *words[1:], expect=2)


def test_vectors(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("GENUS_DATA", str(tmp_path))
    info = read_info(DataConfig(url="breast-cancer"))
    assert info.dims == 30
    lend(monkeypatch, RotationLikelihood((30,), 0), Rotation(30, 0), info)
    genus(capsys, "sample", "run", "--n", "50", "--out", str(tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as file:
        assert file["vectors"].shape == (50, 30)
        assert file["vectors"].dtype == np.float32
    genus(capsys, "sample", "run", "--n", "50", "--out", str(tmp_path / "x.png"))
    with Image.open(tmp_path / "x.png") as picture:
        assert min(picture.size) > 100

    # without being asked: likelihood and round trip of all test vectors
    genus(capsys, "evaluate", "run")
    figures = last_evaluation()[0]
    assert list(figures) == ["nll", "round trip"]
    x = next(iterate_once(DataConfig(url="breast-cancer/test"), 10_000))["vector"].double()
    expected = (x.square().sum(1) / 2).mean() + 15 * math.log(2 * math.pi)
    assert figures["nll"].value == pytest.approx(float(expected), rel=1e-5)
    assert (figures["nll"].unit, figures["round trip"].unit) == ("nats", "")
    assert figures["nll"].passport.samples == len(x)
    genus(capsys, "evaluate", "run", "--likelihood", "20")
    assert last_evaluation()[0]["round trip"].passport.samples == 20
    assert "features need images" in genus(capsys, "evaluate", "run", "--n", "100", expect=2)
    assert "models of images" in genus(capsys, "interpolate", "run", expect=2)
    error = genus(capsys, "anomaly", "run", "--outliers", "grey", expect=2)
    assert "models of images" in error


def test_kept_figures_are_json_that_everybody_reads() -> None:
    for path in Path("run/evaluations").glob("*.json"):
        assert json.loads(path.read_text())["schema"] == "genus-evaluation/1"
