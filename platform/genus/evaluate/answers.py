"""How good answers to sources are: token errors, BLEU and chrF, each with its passport."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genus.errors import EvaluationError
from genus.evaluate.measure import ratio
from genus.evaluate.passport import Figure, Passport


@dataclass(frozen=True)
class Answers:
    """What was found for the sources, beside what is right."""

    found: Sequence[str]
    right: Sequence[str]
    errors: Tensor
    """(N,) edits that make the tokens found the right ones."""
    tokens: Tensor
    """(N,) tokens that are right."""


def errors_of(found: Tensor, right: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """(insertions, deletions and substitutions (B,) between each row's tokens before ``end``;
    number of right tokens (B,)), of tokens (B, T), (B, T') with -1 behind."""
    from torchmetrics.functional.text import word_error_rate

    errors, counts = [], []
    for one, other in zip(found.tolist(), right.tolist(), strict=True):
        mine, truth = _before(one, end), _before(other, end)
        # a "word" of torchmetrics is a token's number; a rate of nothing is not defined
        words = [" ".join(map(str, tokens)) for tokens in (mine, truth)]
        rate = float(word_error_rate(words[0], words[1])) if truth else 0.0
        errors.append(round(rate * len(truth)) if truth else len(mine))
        counts.append(len(truth))
    return torch.tensor(errors), torch.tensor(counts)


def _before(tokens: list[int], end: int) -> list[int]:
    tokens = tokens[: tokens.index(end)] if end in tokens else tokens
    return [token for token in tokens if token >= 0]


def check_possible(count: int) -> None:
    """EvaluationError without sacrebleu, or for fewer than 2 answers: before they are searched."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise EvaluationError("BLEU and chrF need sacrebleu: pip install sacrebleu")
    if count < 2:
        raise EvaluationError(f"answers to at least 2 sources are needed, not {count}")


def answer_figures(answers: Answers, passport: Passport, *, name: str = "") -> dict[str, Figure]:
    """Token error rate, the share of exact answers, chrF and BLEU, their names followed by
    ``name``; no BLEU where no right answer has four words, which even perfect ones would fail.
    EvaluationError as ``check_possible`` has it."""
    n = len(answers.found)
    check_possible(n)
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    passport = replace(passport, samples=n)
    rate, spread = ratio(answers.errors.double(), answers.tokens.double())
    exact, exact_spread = ratio((answers.errors == 0).double(), torch.ones(n, dtype=torch.double))
    tokens = replace(passport, scoring="edits over the right tokens, end token not counted")
    tail = f" {name}" if name else ""
    error = "standard error"
    figures = {
        f"token error rate{tail}": Figure(100 * rate, 100 * spread, "%", tokens, error),
        f"exact{tail}": Figure(100 * exact, 100 * exact_spread, "%", tokens, error),
    }
    has_four = any(len(text.split()) >= 4 for text in answers.right)
    for label, metric in [("BLEU", BLEU())] * has_four + [("chrF", CHRF())]:
        score = metric.corpus_score(list(answers.found), [list(answers.right)])
        signed = replace(passport, scoring=f"sacrebleu {metric.get_signature()}")
        figures[f"{label}{tail}"] = Figure(float(score.score), None, "", signed)
    return figures
