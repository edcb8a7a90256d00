"""The sequence-to-sequence recipe and its commands as users meet them."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genus.data.characters import characters_model
from genus.data.log_mel import log_mel, read_wav
from genus.data.pack_pairs import Pair, pack_pairs
from genus.data.text import END, tokenizer_of_model
from genus.tracking import read_events, read_metrics
from launching import BIN, ROOT, command, run

GENUS = str(BIN / "genus")
RECIPE = "recipes/seq2seq.py"
SMALL = (
    "--preset",
    "tiny",
    "tracking.wandb=off",
    "run.root=.",
    "run.name=run",
    "objective.groups=2",
)
LETTERS = tokenizer_of_model(characters_model("abcd", END), END)


def packed(folder: Path, pairs: list[Pair], rate: int = 0) -> None:
    """As train and test, padded alike."""
    for split in ("train", "test"):
        pack_pairs(pairs, folder / split, vocabulary=LETTERS.vocabulary, end=LETTERS.end,
                   tokenizer=LETTERS, sound_rate=rate)  # fmt: skip


@pytest.fixture(scope="module")
def reversed_letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt to reverse strings of up to three letters out of four: all 84."""
    folder = tmp_path_factory.mktemp("pairs")
    texts = [""]
    for _ in range(3):
        texts += [t + c for t in texts for c in "abcd"]
    texts = sorted({text for text in texts if text})
    sources = [list(row) for row in LETTERS.encode(texts)]
    packed(folder / "data", [Pair(target=s[::-1], source=s) for s in sources])
    words = [*SMALL, "data.url=data", "train.samples=16000", "train.batch=32",
             "train.status_every=3200", "train.sample_every=16000", "train.validate_every=8000",
             "optim.schedule.warmup=640", "network.positions=learned"]  # fmt: skip
    run(command(1, *words, recipe=RECIPE), folder)
    return folder / "run"


def test_reversing_is_learnt_without_errors(reversed_letters: Path) -> None:
    rows = [row["predict/loss"] for row in read_metrics(reversed_letters) if "step" in row]
    assert rows[-1] < 0.05 < rows[0]
    events = read_events(reversed_letters)
    assert [e["token_error_rate"] for e in events if e["event"] == "translations"] == [0]
    values = [e["value"] for e in events if e["event"] == "validation"]
    assert len(values) == 2
    assert values[-1] < 0.05
    (written,) = (reversed_letters / "samples").glob("*.txt")
    blocks = written.read_text().strip().split("\n\n")
    assert len(blocks) == 50
    source, target, found = (line.split()[1] for line in blocks[0].splitlines())
    assert source[::-1] == target == found


def test_answers_to_the_user_and_to_the_test_set(reversed_letters: Path) -> None:
    folder = reversed_letters.parent
    words = [GENUS, "translate", str(reversed_letters)]
    assert run([*words, "--source", "abc"], folder).strip() == "cba"
    output = run([*words, "--n", "3", "--beams", "1", "--out", "t.txt"], folder)
    assert "3 answers, greedy" in output
    assert (folder / "t.txt").read_text().count("found") == 3
    for source, message in (("abx", "'x'"), ("", "a text of 0"), ("abca", "a text of 4 tokens")):
        assert message in run([*words, "--source", source], folder, expect=2)
    unlike = ["--reference", str(ROOT / "tests" / "data" / "fashion-1000")]
    assert "is not such data" in run([*words, *unlike], folder, expect=2)
    output = run([GENUS, "sample", str(reversed_letters)], folder, expect=2)
    assert "genus translate" in output
    output = run([GENUS, "evaluate", str(reversed_letters), "--top-k", "3"], folder, expect=2)
    assert "has no --top-k" in output


def test_a_test_split_that_the_model_can_not_read_is_found_before_training(tmp_path: Path) -> None:
    for split, text in (("train", "ab"), ("test", "abca")):
        (tokens,) = LETTERS.encode([text])
        pack_pairs([Pair(target=tokens, source=tokens)] * 4, tmp_path / "data" / split,
                   vocabulary=LETTERS.vocabulary, end=LETTERS.end, tokenizer=LETTERS)  # fmt: skip
    words = [*SMALL, "data.url=data", "data.lanes=4"]
    output = run(command(1, *words, recipe=RECIPE), tmp_path, expect=2)
    assert "targets of up to 5, and the model is made for the 3" in output
    assert "samples/s" not in output


def test_figures_stand_beside_their_baselines(reversed_letters: Path) -> None:
    run([GENUS, "evaluate", str(reversed_letters)], reversed_letters.parent)
    (path,) = (reversed_letters / "evaluations").glob("*.json")
    document = json.loads(path.read_text())
    figures = {name: figure["value"] for name, figure in document["figures"].items()}
    assert (figures["token error rate"], figures["exact"], figures["chrF"]) == (0, 100, 100)
    palindromes = 4 + 4 + 16  # of one, two and three letters
    assert figures["exact of copies"] == pytest.approx(100 * palindromes / 84)
    assert figures["exact of the nearest"] < 100
    passports = document["passports"]
    assert {p["sampler"] for p in passports if p["scoring"]} == {
        "4 beams, length penalty 0.6",
        "the source itself",
        "the target of the most similar training source",
    }


def write_wav(path: Path, hertz: float, rate: int = 8000, samples: int = 2000) -> None:
    sound = (8000 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(sound.tobytes())


def test_sounds_are_transcribed(tmp_path: Path) -> None:
    pairs = []
    for letter, hertz in zip("abcd", (300, 900, 1800, 3500), strict=True):
        write_wav(tmp_path / f"{letter}.wav", hertz)
        (target,) = LETTERS.encode([letter])
        pairs.append(Pair(target=target, frames=log_mel(*read_wav(tmp_path / f"{letter}.wav"))))
    packed(tmp_path / "data", pairs, rate=8000)
    words = [
        *SMALL,
        "data.url=data",
        "train.samples=800",
        "data.lanes=4",
        "objective.source.masks=1",
    ]
    run(command(1, *words, recipe=RECIPE), tmp_path)
    for letter in "ac":
        words = [GENUS, "translate", "run", "--source", f"{letter}.wav"]
        assert run(words, tmp_path).strip() == letter
    write_wav(tmp_path / "other.wav", 300, rate=16000)
    write_wav(tmp_path / "long.wav", 300, samples=9000)
    for source, message in (
        ("nowhere", "reads a .wav file"),
        ("a text " * 100, "reads a .wav file"),
        ("other.wav", "-ar 8000"),
        ("long.wav", "hears up to"),
    ):
        output = run([*words[:-1], source], tmp_path, expect=2)
        assert message in output
        assert "Traceback" not in output


def test_images_are_captioned(tmp_path: Path) -> None:
    pairs = []
    for letter, colour in zip("abcd", ("red", "green", "blue", "white"), strict=True):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{letter}.png")
        (target,) = LETTERS.encode([letter])
        pairs.append(Pair(target=target, image=(tmp_path / f"{letter}.png").read_bytes()))
    packed(tmp_path / "data", pairs)
    words = [*SMALL, "data.url=data", "data.size=16", "train.samples=800", "data.lanes=4"]
    run(command(1, *words, recipe=RECIPE), tmp_path)
    words = [GENUS, "translate", "run", "--source", "c.png"]
    assert run(words, tmp_path).strip() == "c"


def test_data_without_targets_are_refused(tmp_path: Path) -> None:
    data = Path(__file__).parent / "data" / "fashion-1000"
    words = [*SMALL, f"data.url={data}"]
    output = run(command(1, *words, recipe=RECIPE), tmp_path, expect=2)
    assert "needs a target" in output
    assert "Traceback" not in output
