"""Answers to held-out sources while a model trains, and how wrong they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genus.atomic import replacing
from genus.data.batch import Batch
from genus.data.datasets import tokenizer_of
from genus.data.fitting import check_fits
from genus.data.manifest import DataInfo
from genus.data.opening import read_info
from genus.data.stream import DataConfig
from genus.data.text import Tokenizer
from genus.errors import DataError
from genus.evaluate.answers import errors_of
from genus.objectives.phase import CanTranslate, SampleOptions
from genus.run import Run
from genus.sampling import evaluating
from genus.validation import held_out, own_part


def told(tokenizer: Tokenizer, info: DataInfo, batch: Batch, found: Tensor, row: int) -> str:
    """A row's source, target and answer, for a person; the answer alone where no target is."""
    answer = tokenizer.decode(found[row].numpy())
    if "target" not in batch:
        return answer
    truth = tokenizer.decode(batch["target"][row].cpu().numpy())
    if "source" not in batch:
        source = f"[{'frames' if 'frames' in batch else 'image'} {int(batch.ids[row])}]"
    elif info.has_one_tokenizer:
        source = tokenizer.decode(batch["source"][row].cpu().numpy())
    else:
        source = " ".join(str(t) for t in batch["source"][row].tolist() if t >= 0)
    return f"source  {source}\ntarget  {truth}\nfound   {answer}\n"


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
        """Never due where ``data`` has no test split or no tokenizer, which the log says. DataError
        where the test split is not such as the model, which is sized by ``info``, can read."""
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
        if self.every and self._data is not None:
            check_fits(info, read_info(self._data))

    def run(self, samples: int) -> Mapping[str, Any]:
        """Returns the file's path and the token error rate."""
        assert self._data is not None
        world = self._run.world
        written: list[str] = []
        wrong = total = 0
        batches = own_part(self._data, self._rows, world)
        with evaluating(self._networks), torch.no_grad():
            for batch in batches:
                found = self._objective.translate(self._networks, batch, self._options).cpu()
                right = batch["target"].cpu()
                errors, tokens = errors_of(found, right, self._tokenizer.end)
                wrong, total = wrong + int(errors.sum()), total + int(tokens.sum())
                written += [told(self._tokenizer, self._info, batch, found, row)
                            for row in range(len(batch))]  # fmt: skip
        everybody = world.gather((written, wrong, total))
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
