"""Answers to held-out sources while a model trains, and how wrong they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genus.atomic import replacing
from genus.data.batch import Batch
from genus.data.datasets import tokenizer_of
from genus.data.manifest import DataInfo
from genus.data.stream import DataConfig, iterate_once
from genus.data.text import Tokenizer
from genus.errors import DataError
from genus.evaluate.answers import errors_of
from genus.objectives.phase import CanTranslate, SampleOptions
from genus.run import Run
from genus.sampling import evaluating
from genus.validation import BATCH, held_out


def source_text(tokenizer: Tokenizer, info: DataInfo, batch: Batch, row: int) -> str:
    """What a row's source is, for a person: its text where it has one."""
    if "source" not in batch:
        return f"[{'frames' if 'frames' in batch else 'image'} {int(batch.ids[row])}]"
    tokens = batch["source"][row].cpu()
    if info.source_vocabulary == info.vocabulary:  # one tokenizer for both sides
        return tokenizer.decode(tokens.numpy())
    return " ".join(str(token) for token in tokens.tolist() if token >= 0)


class Translations:
    """An evaluation for the loop: the first ``rows`` held-out sources answered with the averaged
    weights, by greedy search, shared by the ranks. Written beside the right answers."""

    name = "translations"

    def __init__(
        self,
        run: Run,
        networks: Mapping[str, nn.Module],
        objective: CanTranslate,
        *,
        every: int,
        data: DataConfig,
        info: DataInfo,
        rows: int = 50,
    ) -> None:
        """Never due where ``data`` has no test split or no tokenizer, which the log says."""
        self._run, self._networks, self._objective = run, networks, objective
        self._data, self._info, self._rows = held_out(data), info, rows
        self._options = SampleOptions(beams=1)
        objective.plan(self._options)
        self.every = every if self._data else 0
        try:
            self._tokenizer = tokenizer_of(data.url)
        except DataError as error:
            run.say(f"no translations: {error}")
            self.every = 0

    def run(self, samples: int) -> Mapping[str, Any]:
        """Returns the file's path and the token error rate."""
        assert self._data is not None
        world, decode = self._run.world, self._tokenizer.decode
        told: list[str] = []
        wrong = total = 0
        batches = iterate_once(
            self._data,
            max(BATCH, world.size),
            limit=self._rows,
            rank=world.rank,
            world=world.size,
            device=world.device,
        )
        with evaluating(self._networks), torch.no_grad():
            for batch in batches:
                found = self._objective.translate(self._networks, batch, self._options).cpu()
                right = batch["target"].cpu()
                errors, tokens = errors_of(found, right, self._tokenizer.end)
                wrong, total = wrong + int(errors.sum()), total + int(tokens.sum())
                for row in range(len(batch)):
                    source = source_text(self._tokenizer, self._info, batch, row)
                    answer, truth = decode(found[row].numpy()), decode(right[row].numpy())
                    told.append(f"source  {source}\ntarget  {truth}\nfound   {answer}\n")
        everybody = world.gather((told, wrong, total))
        rate = sum(part[1] for part in everybody) / sum(part[2] for part in everybody)
        path = f"samples/{samples:012d}.txt"
        self._run.metrics.write({"samples": samples, "token_error_rate": rate})
        self._run.say(f"{samples:>10,}  token error rate {100 * rate:.1f} %")
        if world.is_first:
            try:
                with replacing(self._run.folder / path) as temporary:
                    temporary.write_text("\n".join(text for part in everybody for text in part[0]))
            except OSError as error:  # no reason to end a run
                self._run.say(f"no translations: {error}")
                return {"error": str(error), "token_error_rate": rate}
        return {"text": path, "token_error_rate": rate}
