"""What the arguments of a ``genus`` subcommand ask for: model, options, classes, data, samples."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Iterator

import torch
from torch import Tensor

from genus.data.fitting import check_fits
from genus.data.opening import DataConfig, read_info
from genus.errors import ConfigError
from genus.model import Model, load_model
from genus.nodes import cores_here
from genus.objectives.phase import SampleOptions
from genus.sampling import grid_labels, sample_batches
from genus.validation import held_out


def device_of(arguments: Namespace) -> torch.device:
    """``--device``, or CUDA where there is one. ConfigError."""
    has_cuda = torch.cuda.is_available()
    if str(arguments.device).startswith("cuda") and not has_cuda:
        raise ConfigError("--device cuda: this machine has none, or torch was built without it")
    return torch.device(arguments.device or ("cuda" if has_cuda else "cpu"))


def model_of(arguments: Namespace) -> Model:
    """The run's model with the average that ``--ema`` names."""
    if torch.get_num_threads() == 1:  # OMP_NUM_THREADS=1 is meant for several processes
        torch.set_num_threads(cores_here())
    return load_model(arguments.folder, arguments.ema, device_of(arguments))


def options_of(arguments: Namespace) -> SampleOptions:
    """How to draw or to search, with the networks of ``--guide``."""
    guide = None
    if getattr(arguments, "guide", None) is not None:
        guide = load_model(arguments.guide, arguments.guide_ema, device_of(arguments)).networks
    names = {option.name for option in dataclasses.fields(SampleOptions)} - {"prompt", "guide"}
    given = {name: getattr(arguments, name, None) for name in names}  # a command has some of them
    return SampleOptions(**given, guide=guide)


def labels_of(model: Model, count: int, label: int | None) -> list[int] | None:
    """A class for each of ``count`` samples: ``--class``, or all in turn. ConfigError."""
    if label is None:
        return grid_labels(count, model.info.classes)
    check_class(model, label)
    return [label] * count


def check_class(model: Model, label: int) -> None:
    """ConfigError for a ``--class`` that the model has not."""
    classes = model.info.classes
    if not 0 <= label < classes:
        has = f"classes 0 to {classes - 1}" if classes else "no classes"
        raise ConfigError(f"--class {label}: this model has {has}")


def check_images(model: Model, command: str) -> None:
    """ConfigError where the model is not one of images."""
    if not model.info.resolution or model.info.target_length:
        raise ConfigError(f"genus {command} is for models of images, and {model.folder} has none")


def reference_of(model: Model, url: str | None) -> DataConfig:
    """The run's data config on the asked set; else on the test split beside its own, if any; else
    on its own, but for answers, which are not to be known. ConfigError, or DataError where the
    model can't read them."""
    if url is None:
        test = held_out(model.config.data)
        url = test.url if test else model.config.data.url
        if test is None and model.info.target_length:
            raise ConfigError(f"{url} has no test split beside it: name other pairs by --reference")
    data = dataclasses.replace(plain(model), url=url, also=(), weights=())
    check_fits(model.info, read_info(data))
    return data


def plain(model: Model) -> DataConfig:
    """The run's training data as they are, without flips and buckets, at the model's size."""
    data: DataConfig = model.config.data
    size = model.info.resolution or data.size
    return dataclasses.replace(data, size=size, bucket_step=0, flip=False)


def samples_of(
    model: Model, arguments: Namespace, labels: list[int] | None, count: int, options: SampleOptions
) -> Iterator[Tensor]:
    """Batches of ``count`` samples, on the host."""
    batches = sample_batches(
        model.objective,
        model.networks,
        range(count),
        labels,
        seed=arguments.seed,
        device=device_of(arguments),
        options=options,
        batch=arguments.batch,
    )
    for drawn in batches:
        yield drawn.cpu()
