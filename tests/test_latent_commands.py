"""genus invert, interpolate and edit on the generators of GANs, of random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genus import cli
from genus.data.stream import DataConfig, read_info
from genus.draws import Draws, seed_of
from genus.evaluate.grid import GAP
from genus.evaluate.image_measures import MEASURES
from genus.model import Model
from genus.networks.gan.dcgan import DCGANConfig
from genus.networks.gan.mlp import MLPGANConfig
from genus.networks.gan.stylegan2 import StyleGAN2Config
from genus.objectives.adversarial import AdversarialConfig
from launching import ROOT

SIDE, CLASSES = 8, 10
FASHION = str(ROOT / "tests" / "data" / "fashion-1000")
STYLES = StyleGAN2Config(
    latent=8, width=8, mapping_layers=1, channels_base=128, channels_max=16, label_layers=1
)


class Config:
    """The part of a run's config that the commands ask for."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data


def made(network: Any, folder: str = "run", classes: int = CLASSES, seed: int = 0) -> Model:
    """A model of random weights, whose noise is visible and whose pixels are within their range."""
    info = read_info(DataConfig(url=FASHION, size=SIDE, fit="resize"))
    info = replace(info, classes=classes)
    torch.manual_seed(seed)
    networks = network.build(info.shape, classes)
    for name, parameter in networks.get("synthesis", torch.nn.Identity()).named_parameters():
        if name.endswith("strength"):
            torch.nn.init.constant_(parameter, 0.05)
        if name.endswith("to_image.weight"):
            torch.nn.init.normal_(parameter, std=0.4)
    objective = AdversarialConfig().build(networks, info.shape, classes)
    config = Config(DataConfig(url=FASHION, size=SIDE, fit="resize"))
    return Model(Path(folder), config, info, networks, objective, 7, "samples-7", "plain")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a busy machine several threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("genus.arguments.cores_here", lambda: 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    model = made(STYLES)
    lend(model, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return model


def lend(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands find this model in any run folder."""
    monkeypatch.setattr("genus.arguments.load_model", lambda *arguments: model)


def genus(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> str:
    code = cli.main([*words, "--device", "cpu"])
    said = capsys.readouterr()
    assert code == expect, said.err
    return said.err if expect else said.out


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


def arrays(path: str) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def measured(text: str, name: str) -> list[float]:
    """The figures of an attribute's line in the table."""
    (line,) = (line for line in text.splitlines() if re.match(rf"{name} +\d", line))
    return [float(number) for number in re.findall(r"\d\.\d{3}", line)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of noise of each draw."""
    rows: list[int] = []
    plain = Draws.normal

    def normal(self: Draws, name: str, *arguments: Any) -> Tensor:
        found = plain(self, name, *arguments)
        if name == "noise":
            rows.append(len(found))
        return found

    monkeypatch.setattr(Draws, "normal", normal)
    return rows


# ---- invert --------------------------------------------------------------------------------------


def test_an_image_that_the_model_made_is_found_again(
    run: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    genus(capsys, "sample", "run", "--n", "3", "--class", "4", "--seed", "5", "--out", "own.npz")
    own = arrays("own.npz")["images"]
    for number, image in enumerate(own):
        Image.fromarray(image[0]).save(f"{number}.png")
    words = ["invert", "run", "0.png", "1.png", "2.png", "--class", "4", "--steps"]
    fast = ["--distance", "pixels", "--samples", "200"]
    text = genus(capsys, *words, "300", *fast, "--out", "found")
    assert "3 of 3 projections are nearer than the best of 200 samples" in text
    found = arrays("found.npz")
    assert (found["distances"] < 0.25 * found["best_distances"]).all(), found["distances"]
    assert (found["best_distances"] < found["mean_distances"] * 1.5).all()
    layers = run.networks["synthesis"].layers
    assert found["styles"].shape == (3, layers, 8)
    assert np.array_equal(found["styles"][:, 0], found["styles"][:, -1])  # one w
    assert found["labels"].tolist() == [4, 4, 4]
    about = json.loads(str(found["about"]))
    assert (about["run"], about["checkpoint"], about["seed"]) == ("run", "samples-7", 0)
    assert about["images"] == ["0.png", "1.png", "2.png"]
    # the picture shows what the codes make
    pairs = tiles("found.png", 6)[0]
    with torch.no_grad():
        styles, noise = (torch.from_numpy(found[name]) for name in ("styles", "noise"))
        image = run.networks["synthesis"](styles, noise)
    levels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[:, 0]
    assert (pairs[1::2].int() - levels.int()).abs().max() <= 1
    assert torch.equal(pairs[::2], torch.from_numpy(own[:, 0]))

    # by features, too, and one at a time; the same again
    words = [*words, "15", "--samples", "9"]
    genus(capsys, *words, "--out", "a")
    genus(capsys, *words, "--out", "b")
    genus(capsys, *words, "--out", "one", "--batch", "1")
    a, b, one = arrays("a.npz"), arrays("b.npz"), arrays("one.npz")
    assert np.array_equal(a["styles"], b["styles"])
    assert np.array_equal(a["noise"], b["noise"])
    # rounding differs with the batch, and Adam divides small gradients by their own size
    assert np.abs(a["styles"] - one["styles"]).max() < 0.05
    assert a["distances"] == pytest.approx(one["distances"], rel=0.05)
    assert not np.array_equal(a["styles"][0], a["styles"][1])
    genus(capsys, *words, "--out", "c", "--seed", "1")
    assert not np.array_equal(a["noise"], arrays("c.npz")["noise"])


def test_inverting_draws_noise_for_images_alone(
    run: Model, drawn: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """11 MB a row at 1024 pixels: for each target, and for each batch to compare with."""
    words = ["invert", "run", "0", "--reference", FASHION, "--steps", "2", "--samples", "10"]
    genus(capsys, *words, "--distance", "pixels", "--batch", "4")
    assert drawn == [1, 4, 4, 2]


def test_test_images_and_a_w_for_each_layer(run: Model, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["invert", "run"]
    fast = ["--reference", FASHION, "--steps", "30", "--samples", "20", "--distance", "pixels"]
    genus(capsys, *command, *fast, "--n", "3", "--out", "first", "--space", "w+")
    first = arrays("first.npz")
    assert np.abs(first["styles"][:, 0] - first["styles"][:, 1]).max() > 0.01
    genus(capsys, *command, "2", "0", *fast, "--out", "two", "--space", "w+")
    two = arrays("two.npz")
    assert two["labels"].tolist() == [first["labels"][2], first["labels"][0]]
    assert two["mean_distances"] == pytest.approx(first["mean_distances"][[2, 0]], rel=1e-5)
    # shrunk as the data are: the same file from the folder of the data gives the same target
    targets, again = tiles("first.png", 6)[0, ::2], tiles("two.png", 4)[0, ::2]
    assert torch.equal(again, targets[[2, 0]])
    large = targets[2].repeat_interleave(5, 0).repeat_interleave(5, 1)
    Image.fromarray(large.numpy()).convert("RGB").save("large.png")
    genus(capsys, *command, "large.png", *fast, "--out", "large")
    shown = tiles("large.png", 2)[0, 0]
    assert (shown.int() - targets[2].int()).abs().float().mean() < 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["invert", "run", "no.png"], "can't read no.png"),
        (["invert", "run", "no.txt"], "no.txt is no image"),
        (["invert", "run", "broken.png"], "broken.png: no readable image"),
        (["invert", "run", "big.png", "--fit", "pad"], "20 x 9 pixels, and run makes 8 x 8"),
        (["invert", "run", "5000", "--reference", FASHION], "images 0 to 999, and 5000 is asked"),
        (["invert", "run", "3", "--n", "2"], "leave it out where IMAGE is given"),
        (["invert", "run", "--class", "10"], "classes 0 to 9"),
        (["interpolate", "run", "--reference", FASHION], "here the ends are drawn"),
        (["interpolate", "run", "--space", "z", "--to-class", "1"], "--to-class is for walks in w"),
        (["interpolate", "run", "--space", "z", "--truncation", "1"], "--truncation is for codes"),
        (["interpolate", "run", "--codes", "broken.png"], "no file that 'genus invert"),
        (["interpolate", "run", "--steps", "1"], "2 ends"),
        (["edit", "run", "--attribute", "beauty"], "there are brightness, contrast"),
        (["edit", "run", "--attribute", "width", "--keep", "width"], "the attribute to change"),
        (["edit", "run", "--attribute", "width", "--layers", "2-9"], "A-B within 0-3"),
        (["edit", "run", "--component", "9"], "components 1 to 8"),
        (["edit", "run", "--component", "1", "--fit", "ridge"], "--fit is for --attribute"),
        (["edit", "run", "--to-class", "2"], "name the class that it starts from"),
        (["edit", "run", "--to-class", "2", "--class", "2"], "that it starts from"),
        (["edit", "run", "--direction", "broken.png"], "no file that 'genus edit"),
        (["edit", "run", "--attribute", "width", "--samples", "3"], "10 at least"),
    ],
)
def test_wrong_requests(
    words: list[str], message: str, run: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Image.new("L", (20, 9)).save("big.png")
    assert message in genus(capsys, *words, expect=2)
    assert len(list(Path.cwd().iterdir())) == 2


def test_generators_without_styles(
    run: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made(DCGANConfig(latent=4, width=4), folder="plain")
    lend(plain, monkeypatch)
    for words in (["invert", "plain"], ["edit", "plain", "--component", "1"]):
        error = genus(capsys, *words, expect=2)
        assert f"genus {words[0]} is for style-based GANs" in error
    error = genus(capsys, "interpolate", "plain", "--space", "w", expect=2)
    assert "the generator of plain has z" in error
    # along the great circle of z, from one sample to another
    words = ["--class", "3", "--seed", "2"]
    assert "great circle in z" in genus(capsys, "interpolate", "plain", "--pairs", "2", *words)
    genus(capsys, "sample", "plain", "--n", "4", *words, "--out", "four.npz")
    four = torch.from_numpy(arrays("four.npz")["images"])[:, 0]
    shown = tiles("interpolation.png", 9)
    assert torch.equal(shown[:, 0], four[::2])
    assert torch.equal(shown[:, -1], four[1::2])
    vectors = MLPGANConfig(width=8, depth=1)
    info = replace(plain.info, fields=("vector",), dims=2, resolution=0, channels=0, classes=0)
    networks = vectors.build((2,), 0)
    objective = AdversarialConfig().build(networks, (2,), 0)
    lend(replace(plain, info=info, networks=networks, objective=objective), monkeypatch)
    assert "models of images" in genus(capsys, "interpolate", "plain", expect=2)
    assert "style-based GANs" in genus(capsys, "invert", "plain", expect=2)


# ---- interpolate ---------------------------------------------------------------------------------


def styles_of(run: Model, numbers: list[int], label: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = Draws.of([seed_of(seed, "sample", number) for number in numbers])
    with torch.no_grad():
        w = run.networks["mapping"](draws.normal("z", (8,)), torch.full((len(numbers),), label))
    noise = draws.normal("noise", (run.networks["synthesis"].noise_size,))
    return w[:, None].expand(-1, run.networks["synthesis"].layers, -1), noise


def levels_of(run: Model, styles: Tensor, noise: Tensor) -> Tensor:
    with torch.no_grad():
        image = run.networks["synthesis"](styles, noise)[:, 0]
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def test_walks_in_w(run: Model, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["interpolate", "run", "--pairs", "3", "--steps", "5", "--seed", "4"]
    text = genus(capsys, *words, "--class", "2", "--batch", "4")
    assert "3 pairs along a straight line in w" in text
    shown = tiles("interpolation.png", 5)
    styles, noise = styles_of(run, [0, 1, 2, 3, 4, 5], 2, seed=4)
    quiet = noise[::2]
    for column, share in ((0, 0.0), (2, 0.5), (4, 1.0)):
        between = (1 - share) * styles[::2] + share * styles[1::2]
        expected = levels_of(run, between, quiet)
        assert (shown[:, column].int() - expected.int()).abs().max() <= 1
    sampled = ["sample", "run", "--n", "6", "--class", "2", "--seed", "4", "--out", "six.npz"]
    genus(capsys, *sampled)
    assert torch.equal(shown[:, 0], torch.from_numpy(arrays("six.npz")["images"])[::2, 0])

    genus(capsys, *words, "--class", "2", "--truncation", "0", "--out", "mean.png")
    mean = tiles("mean.png", 5)
    assert torch.equal(mean, mean[:, :1].expand_as(mean))
    genus(capsys, *words, "--class", "2", "--to-class", "7", "--out", "classes.png")
    classes = tiles("classes.png", 5)
    assert torch.equal(classes[:, 0], shown[:, 0])
    expected = levels_of(run, styles_of(run, [1, 3, 5], 7, seed=4)[0], quiet)
    assert (classes[:, -1].int() - expected.int()).abs().max() <= 1
    genus(capsys, *words, "--class", "2", "--space", "z", "--out", "z.png")
    turned = tiles("z.png", 5)
    assert torch.equal(turned[:, 0], shown[:, 0])
    assert torch.equal(turned[:, -1], shown[:, -1])
    assert not torch.equal(turned, shown)


def test_walks_draw_noise_for_one_batch_of_images_at_once(
    run: Model, drawn: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["interpolate", "run", "--pairs", "5", "--steps", "3", "--seed", "1"]
    for batch, rows in (("7", 2), ("1", 1), ("100", 5)):
        drawn.clear()
        genus(capsys, *words, "--batch", batch, "--out", f"{batch}.png")
        assert max(drawn) == rows
        assert sum(drawn) == 10
    one, seven, whole = (tiles(f"{batch}.png", 3).int() for batch in ("1", "7", "100"))
    assert (seven - whole).abs().max() <= 1
    assert (one - whole).abs().max() <= 1
    genus(capsys, "sample", "run", "--n", "10", "--seed", "1", "--out", "ten.npz")
    labels = arrays("ten.npz")["labels"]
    assert labels.tolist() == list(range(10))


def test_walks_between_codes(
    run: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["invert", "run", "--reference", FASHION, "--n", "3", "--steps", "5"]
    genus(capsys, *words, "--samples", "5", "--distance", "pixels", "--out", "codes")
    walk = ["interpolate", "run", "--codes", "codes.npz", "--steps", "3"]
    assert "2 pairs" in genus(capsys, *walk)
    shown, found = tiles("interpolation.png", 3), tiles("codes.png", 6)[0, 1::2]
    assert torch.equal(shown[:, 0], found[:2])
    assert torch.equal(shown[:, -1], found[1:])
    for more, message in (
        (["--pairs", "3"], "3 codes, which make 2 walks"),
        (["--class", "1"], "--class is for ends that are drawn"),
        (["--space", "z"], "--space z is for ends that are drawn"),
    ):
        assert message in genus(capsys, *walk, *more, expect=2)
    # codes are the rows of an edit; those of other weights are not taken
    edit = ["edit", "run", "--component", "1", "--codes", "codes.npz", "--samples", "50"]
    assert "means of the 3 codes of codes.npz" in genus(capsys, *edit, "--steps", "3")
    assert torch.equal(tiles("edit.png", 3)[:, 1], found)
    assert "--n is how many" in genus(capsys, *edit, "--n", "2", expect=2)
    lend(made(STYLES, seed=1), monkeypatch)
    assert "codes.npz is of other weights than run" in genus(capsys, *walk, expect=2)


# ---- edit ----------------------------------------------------------------------------------------


def test_edits_move_what_they_say(run: Model, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", "run", "--attribute", "brightness", "--samples", "600", "--range", "-1", "1"]
    words += ["--steps", "5", "--n", "3"]
    text = genus(capsys, *words, "--save", "brighter.npz")
    assert re.search(r"^brightness +0.*rises at every step", text, re.MULTILINE)
    moved = measured(text, "brightness")
    assert moved == sorted(moved)
    assert len(moved) == 5
    assert moved[4] - moved[0] > 0.02
    shown = tiles("edit.png", 5)
    genus(capsys, "sample", "run", "--n", "3", "--out", "three.npz")
    assert torch.equal(shown[:, 2], torch.from_numpy(arrays("three.npz")["images"])[:, 0])
    assert (shown[:, 4].float().mean() - shown[:, 0].float().mean()) > 2

    # the same direction from its file, and by telling halves apart
    genus(capsys, *words[:2], "--direction", "brighter.npz", *words[6:], "--out", "again.png")
    assert torch.equal(tiles("again.png", 5), shown)
    text = genus(capsys, *words, "--fit", "logistic", "--save", "told.npz")
    assert "rises at every step" in text
    vectors = [arrays(name)["vector"] for name in ("brighter.npz", "told.npz")]
    assert vectors[0] @ vectors[1] > 0.8

    # nothing of what is to stay is in the direction
    other = [*words[:2], "--attribute", "contrast", *words[4:], "--save", "contrast.npz"]
    genus(capsys, *other)
    genus(capsys, *words, "--keep", "contrast", "--save", "kept.npz")
    contrast, kept = (arrays(name)["vector"] for name in ("contrast.npz", "kept.npz"))
    assert abs(contrast @ vectors[0]) > 0.01
    assert abs(contrast @ kept) < 1e-6
    # of some layers only: none is as it was at the ends
    genus(capsys, *words, "--layers", "3", "--out", "last.png")
    last = tiles("last.png", 5)
    assert torch.equal(last[:, 2], shown[:, 2])
    assert not torch.equal(last, shown)


@pytest.mark.parametrize(
    ("words", "images", "noises"),
    [
        # 3 shown and 200 held out, the first 30 ...
        (["--attribute", "width", "--keep", "height"], 30, [30, 200, 3, 200]),
        (["--class", "1", "--to-class", "6"], 30, [30, 30, 3, 200]),
        (["--component", "1"], 0, [3, 200]),
    ],
)
def test_edits_hold_the_images_of_one_batch(
    words: list[str],
    images: int,
    noises: list[int],
    run: Model,
    drawn: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And their noise."""
    seen: list[int] = []
    brightness = MEASURES["brightness"]

    def spy(x: Tensor) -> Tensor:
        seen.append(len(x))
        return brightness(x)

    monkeypatch.setitem(MEASURES, "brightness", spy)
    common = ["--samples", "30", "--n", "3", "--steps", "2", "--batch", "8"]
    genus(capsys, "edit", "run", *words, *common)
    assert max(drawn) == 8
    assert sum(drawn) == sum(noises)
    assert max(seen) == 8
    assert sum(seen) == 2 * 200


def test_a_class_becomes_another(run: Model, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", "run", "--class", "1", "--to-class", "6", "--samples", "300", "--steps", "3"]
    text = genus(capsys, *words)
    assert "rises at every step" in next(x for x in text.splitlines() if x.startswith("like"))
    styles, noise = styles_of(run, list(range(8)), 1, seed=0)
    shown = tiles("edit.png", 3)
    assert torch.equal(shown[:, 0], levels_of(run, styles, noise))


def test_components_without_classes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    lend(made(replace(STYLES, filtered=True), classes=0), monkeypatch)  # and without noise
    text = genus(
        capsys, "edit", "run", "--component", "1", "--samples", "200", "--truncation", "0.5"
    )
    assert "component 1 has" in text
    shown = tiles("edit.png", 7)
    assert not torch.equal(shown[:, 0], shown[:, 6])
    error = genus(capsys, "edit", "run", "--component", "1", "--class", "1", expect=2)
    assert "no classes" in error
    words = ["invert", "run", "0", "--reference", FASHION, "--steps", "10", "--samples", "5"]
    genus(capsys, *words, "--distance", "pixels")
    assert arrays("inverted.npz")["noise"].shape == (1, 0)
    assert "2 pairs" in genus(capsys, "interpolate", "run", "--pairs", "2")
