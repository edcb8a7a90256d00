"""``genus translate``: a trained model's answers to sources, of its test set or of the user."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch

from genus.arguments import device_of, model_of, options_of, reference_of
from genus.atomic import replacing
from genus.data.batch import Batch
from genus.data.datasets import tokenizer_of
from genus.data.log_mel import log_mel, read_wav
from genus.data.stream import iterate_once
from genus.data.text import Tokenizer
from genus.draws import Draws
from genus.errors import ConfigError, DataError
from genus.image_files import read_image
from genus.model import Model
from genus.objectives.phase import CanTranslate
from genus.translations import told


def translate(arguments: Namespace) -> None:
    """Show or write the answers; to sources of the test set with what is right."""
    model = model_of(arguments)
    check_translates(model)
    tokenizer = tokenizer_of(model.config.data.url)
    options = options_of(arguments)
    plan = model.objective.plan(options)
    answers: list[str] = []
    for batch in _sources(model, arguments, tokenizer):
        found = model.objective.translate(model.networks, batch, options).cpu()
        answers += [told(tokenizer, model.info, batch, found, row) for row in range(len(batch))]
    if arguments.out is None:
        return print("\n".join(answers))
    with replacing(arguments.out) as temporary:
        temporary.write_text("\n".join(answers) + "\n")
    print(f"{arguments.out}: {len(answers)} answers, {plan}, ema {model.ema}")


def check_translates(model: Model) -> None:
    """ConfigError where the model answers nothing."""
    if not isinstance(model.objective, CanTranslate):
        raise ConfigError(
            f"genus translate is for models that answer a source, and {model.folder} has no such "
            "model: 'genus sample' draws from it"
        )


def _sources(model: Model, arguments: Namespace, tokenizer: Tokenizer) -> Iterator[Batch]:
    device, source = device_of(arguments), arguments.source
    if source is None:
        data = reference_of(model, arguments.reference)
        yield from iterate_once(data, arguments.batch, limit=arguments.n, device=device)
        return
    fields = own_source(model, source, tokenizer)
    ids = torch.zeros(1, dtype=torch.int64)
    on_device = {name: value.to(device) for name, value in fields.items()}
    yield Batch(on_device, ids, 0, Draws.of([arguments.seed], device=device))


def own_source(model: Model, source: str, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Fields of a batch of one row: of a text, or of the file of an image or sound. ConfigError for
    what the model does not read, DataError for what can't be read."""
    info = model.info
    if info.source_vocabulary:
        if not info.has_one_tokenizer:
            raise ConfigError(
                "--source: this model's sources have a tokenizer of their own, which its data do "
                "not keep; leave it out to see answers to the test set"
            )
        try:
            (tokens,) = tokenizer.encode([source])
        except UnicodeError:
            raise DataError("--source: the text is no UTF-8") from None
        if not 0 < len(tokens) <= info.source_length:
            raise DataError(
                f"--source: a text of {len(tokens)} tokens, and this model reads 1 to "
                f"{info.source_length}"
            )
        return {"source": torch.tensor(list(tokens), dtype=torch.int64)[None]}
    path = Path(source)
    if not os.path.isfile(source):  # noqa: PTH113, which fails for long texts
        wanted = "a .wav file" if info.frame_features else "an image file"
        raise DataError(f"--source: this model reads {wanted}, and there is none at {source}")
    if info.frame_features:
        sound, rate = read_wav(path)
        if info.sound_rate not in (0, rate):
            raise DataError(
                f"--source: {source} has {rate} Hz, and this model hears {info.sound_rate} Hz: "
                f"'ffmpeg -i {path.name} -ar {info.sound_rate} -ac 1 out.wav' makes that"
            )
        frames = torch.from_numpy(log_mel(sound, rate)).float()[None]
        if frames.shape[1] > info.source_length:
            raise DataError(
                f"--source: {source} has {frames.shape[1]} frames, and this model hears up to "
                f"{info.source_length}"
            )
        return {"frames": frames, "frames_length": torch.tensor([frames.shape[1]])}
    image = read_image(path, info, model.config.data.fit, "--source")
    return {"image": image[None]}
