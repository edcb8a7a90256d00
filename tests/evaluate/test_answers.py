"""Answers: errors by hand, sacrebleu's own figures, and baselines that find what is alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from genus.answering import copied, most_similar
from genus.data.characters import characters_model
from genus.data.log_mel import log_mel
from genus.data.pack_pairs import Pair, pack_pairs
from genus.data.stream import DataConfig
from genus.data.text import END, tokenizer_of_model
from genus.errors import EvaluationError
from genus.evaluate.answers import Answers, answer_figures, errors_of
from genus.evaluate.nearest import nearest, token_vectors
from genus.evaluate.passport import Passport

PASSPORT = Passport(reference="test", sampler="greedy")
TOKENIZER = tokenizer_of_model(characters_model("abcdefgh ", END), END)


def test_errors_are_edits_before_the_end() -> None:
    end = 9
    right = torch.tensor(
        [[1, 2, 3, 9, -1], [1, 2, 3, 9, -1], [1, 2, 9, -1, -1], [9, -1, -1, -1, -1]]
    )
    found = torch.tensor([[1, 2, 3, 9, 9], [1, 3, 9, 9, 9], [2, 1, 1, 1, 1], [4, 5, 9, 9, 9]])
    errors, tokens = errors_of(found, right, end)
    assert errors.tolist() == [
        0,
        1,
        4,
        2,
    ]  # 2 1 1 1 1 -> 1 2: insert 1, delete 1 1 1 ... at least 4
    assert tokens.tolist() == [3, 3, 2, 0]


def test_figures_are_sacrebleu_s_and_say_how_texts_were_compared() -> None:
    found = ["the cat sat on the mat", "a dog ran off quickly today", "no"]
    right = ["the cat sat on a mat", "a dog ran away quickly today", "yes"]
    answers = Answers(found, right, torch.tensor([1, 2, 0]), torch.tensor([4, 4, 2]))
    figures = answer_figures(answers, PASSPORT, name="of x")
    assert figures["BLEU of x"].value == sacrebleu.corpus_bleu(found, [right]).score
    assert figures["chrF of x"].value == sacrebleu.corpus_chrf(found, [right]).score
    assert "version:" in str(figures["BLEU of x"].passport.scoring)
    rate = figures["token error rate of x"]
    assert rate.value == pytest.approx(100 * 3 / 10)
    residuals = np.array([1 - 1.2, 2 - 1.2, 0 - 0.6])
    assert rate.spread == pytest.approx(100 * np.sqrt(1.5 * (residuals**2).sum()) / 10)
    assert figures["exact of x"].value == pytest.approx(100 / 3)
    assert rate.passport.samples == 3
    with pytest.raises(EvaluationError, match="at least 2"):
        answer_figures(Answers(["a"], ["a"], torch.ones(1), torch.ones(1)), PASSPORT)


def test_tf_idf_by_hand() -> None:
    train = torch.tensor([[0, 0, 1], [1, 2, -1]])
    sparse, dense = token_vectors(train, torch.tensor([[2, 3, -1], [0, 1, 1]]), 4)
    idf = np.log(3 / np.array([2, 3, 2, 1])) + 1
    rows = np.array([[2, 1, 0, 0], [0, 1, 1, 0]]) * idf
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(sparse.to_dense().numpy(), expected, rtol=1e-6)
    asked = np.array([[0, 0, 1, 1], [1, 2, 0, 0]]) * idf
    np.testing.assert_allclose(
        dense.numpy(), asked / np.linalg.norm(asked, axis=1, keepdims=True), rtol=1e-6
    )
    assert nearest([sparse], dense).tolist() == [1, 0]


def test_the_nearest_of_several_blocks_is_the_first_best() -> None:
    rows = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    asked = torch.cat([rows[[7, 33, 49]], -rows[:1]])
    found = nearest(torch.split(rows, 13), asked)
    assert torch.equal(found, (asked @ rows.T).argmax(1))
    assert found[:3].tolist() == [7, 33, 49]


def test_there_is_no_bleu_of_answers_too_short_for_it() -> None:
    short = Answers(["one", "two three"], ["one", "two three"], torch.zeros(2), torch.ones(2))
    assert "BLEU" not in answer_figures(short, PASSPORT)


def packed(folder: Path, name: str, pairs: list[Pair], **more: int) -> DataConfig:
    pack_pairs(pairs, folder / name, vocabulary=TOKENIZER.vocabulary, end=TOKENIZER.end,
               tokenizer=TOKENIZER, **more)  # fmt: skip
    return DataConfig(url=str(folder / name), workers=0)


def tokens(*texts: str) -> list[list[int]]:
    return [list(row) for row in TOKENIZER.encode(texts)]


def test_copies_and_the_nearest_of_texts(tmp_path: Path) -> None:
    train = tokens("aab", "ccd", "eff"), tokens("a", "b", "c")
    test = tokens("ef", "ccb"), tokens("c", "ccb")
    made = [
        [Pair(target=t, source=s) for s, t in zip(*part, strict=True)] for part in (train, test)
    ]
    known, asked = packed(tmp_path, "train", made[0]), packed(tmp_path, "test", made[1])
    same = copied(asked, 9, TOKENIZER)
    assert sorted(zip(same.found, same.right, strict=True)) == [("ccb", "ccb"), ("ef", "c")]
    near = most_similar(known, asked, 9, TOKENIZER, TOKENIZER.vocabulary)
    assert sorted(zip(near.found, near.right, strict=True)) == [("b", "ccb"), ("c", "c")]


def test_the_nearest_sound_is_the_same_one_slower(tmp_path: Path) -> None:
    rate = 8000

    def sweep(start: float, stop: float, seconds: float) -> np.ndarray:
        hertz = np.linspace(start, stop, round(seconds * rate))
        return log_mel(np.sin(2 * np.pi * np.cumsum(hertz) / rate), rate)

    sounds = [sweep(300, 3000, 0.5), sweep(3000, 300, 0.5), sweep(1000, 1000, 0.5)]
    known = [Pair(target=t, frames=f) for t, f in zip(tokens("a", "b", "c"), sounds, strict=True)]
    asked = [Pair(target=tokens("b")[0], frames=sweep(3000, 300, 0.8)),
             Pair(target=tokens("a")[0], frames=sweep(300, 3000, 0.7))]  # fmt: skip
    near = most_similar(
        packed(tmp_path, "train", known), packed(tmp_path, "test", asked), 9, TOKENIZER, 0
    )
    assert list(near.found) == list(near.right)
