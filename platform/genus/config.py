"""From a command line to a frozen config: presets, dotted overrides, JSON.

    recipes/diffusion.py --preset edm-cifar10 data.url=s3://bucket/cifar optim.lr=1e-4

A config is a tree of frozen dataclasses. A field may be a union of dataclasses (a network that is
a U-Net or a DiT); ``network=DiTConfig`` chooses a member, ``network.depth=12`` sets its fields.
This is the only file that knows tyro.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, get_origin
from typing import get_type_hints as hints

from genus.config_json import classes_of, dumps, load, loads, members_of, suggestion
from genus.errors import ConfigError

__all__ = [
    "Command",
    "count_leaves",
    "differences",
    "dumps",
    "fail",
    "leaf_fields",
    "load",
    "loads",
    "override",
    "parse",
]

C = TypeVar("C")


@dataclass(frozen=True)
class Command(Generic[C]):
    """A parsed command line."""

    config: C
    preset: str
    dry_run: bool


def parse(
    config_class: type[C], presets: Mapping[str, C], default: str, argv: Sequence[str] | None = None
) -> Command[C]:
    """The command line's config. Prints help or one clear error and exits (0 or 2) where due."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _parse(config_class, presets, default, words)
    except ConfigError as error:
        fail(str(error))


def fail(message: str, code: int = 2) -> NoReturn:
    """End this process with one message; of several processes only the first one speaks."""
    if _is_first_process():
        print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def _parse(
    config_class: type[C], presets: Mapping[str, C], default: str, words: list[str]
) -> Command[C]:
    preset, file, dry_run = None, None, False
    overrides: list[tuple[str, str]] = []
    wants_help = False
    while words:
        word = words.pop(0)
        flag, _, inline = word.partition("=")
        if flag in ("--preset", "--config"):
            if not inline and not words:
                raise ConfigError(f"{flag} needs a value")
            value = inline or words.pop(0)
            if flag == "--preset":
                preset = _choose(value, presets, "preset")
            else:
                file = value
        elif word == "--dry-run":
            dry_run = True
        elif flag in ("--deepspeed_config", "--deepspeed-config"):
            if not inline and not words:
                raise ConfigError(f"{flag} needs a file")
            _say_deepspeed(inline or words.pop(0))
        elif flag in ("--local_rank", "--local-rank", "--deepspeed"):
            continue  # deepspeed's and older torch's launchers say it; the world is read elsewhere
        elif word in ("--help", "-h"):
            wants_help = True
        elif "=" in word:
            key, _, value = word.removeprefix("--").partition("=")
            overrides.append((key, value))
        else:
            raise ConfigError(
                f"can't read '{word}': write overrides as key=value, or use "
                "--preset NAME, --config FILE, --deepspeed_config FILE, --dry-run, --help"
            )
    if preset is not None and file is not None:
        raise ConfigError("--preset and --config both say where to start from: give one of them")
    config = load(config_class, file) if file is not None else presets[preset or default]
    if wants_help:
        _print_help(config, presets, default)
    return Command(override(config, overrides), preset or default, dry_run)


def override(config: C, overrides: Sequence[tuple[str, str]]) -> C:
    """``config`` with dotted keys set to the texts' values, in any order; the last of a key counts.

    Raises ConfigError if a key is unknown, and ends the process (2) if a value is bad.
    """
    # First the choices of union members, outer before inner, for they bring other keys.
    for key, value in sorted(overrides, key=lambda item: item[0].count(".")):
        config = _choose_member(config, key, value)
    leaves = {key: hint for key, hint, _ in leaf_fields(config)}
    unions = _union_fields(config)
    words: list[str] = []
    for key, value in overrides:
        if key in leaves:
            words += _words_for(key, leaves[key], value)
        elif key not in unions:
            hint = _other_member(key, unions) or suggestion(key, [*leaves, *unions])
            raise ConfigError(f"no key '{key}'{hint}")
    return _tyro(config, words) if words else config


def leaf_fields(config: object) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, value) of every leaf of a config."""
    types_ = hints(type(config))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if is_dataclass(value):
            for key, hint, leaf in leaf_fields(value):
                yield f"{field.name}.{key}", hint, leaf
        else:
            yield field.name, types_[field.name], value


def count_leaves(config_class: type) -> int:
    """Leaf fields of the largest config of a class: of each union, its largest member counts."""
    total = 0
    for hint in hints(config_class).values():
        members = classes_of(hint)
        total += max(count_leaves(member) for member in members.values()) if members else 1
    return total


def differences(old: object, new: object) -> list[str]:
    """Lines 'key: old -> new' for every leaf and every choice in which two configs differ."""
    a = {**_chosen(old), **{key: value for key, _, value in leaf_fields(old)}}
    b = {**_chosen(new), **{key: value for key, _, value in leaf_fields(new)}}
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in [*a, *(k for k in b if k not in a)]
        if (key in a) != (key in b) or a[key] != b[key]
    ]


# ---- choices of unions ---------------------------------------------------------------------------


def _union_fields(config: Any, prefix: str = "") -> dict[str, dict[str, type[Any]]]:
    """Dotted keys of the fields that are unions of dataclasses, with their members by name."""
    found: dict[str, dict[str, type[Any]]] = {}
    types_ = hints(type(config))
    for field in dataclasses.fields(config):
        members = classes_of(types_[field.name])
        if len(members) > 1:
            found[prefix + field.name] = members
        value = getattr(config, field.name)
        if is_dataclass(value):
            found.update(_union_fields(value, f"{prefix}{field.name}."))
    return found


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _chosen(config: Any) -> dict[str, str]:
    """The name of the member that stands in each union."""
    return {key: type(_at(config, key)).__name__ for key in _union_fields(config)}


def _choose_member(config: C, key: str, value: str) -> C:
    members = _union_fields(config).get(key)
    if members is None:
        return config
    member = members[_choose(value, members, f"value for {key}")]
    if type(_at(config, key)) is member:  # chosen already: what the preset set in it stays
        return config
    *parents, last = key.split(".")
    chosen: C = _replace(config, parents, last, member())
    return chosen


def _other_member(key: str, unions: Mapping[str, Mapping[str, type[Any]]]) -> str:
    """A hint where ``key`` is a field of a union's member that is not the chosen one."""
    group, _, name = key.rpartition(".")
    owners = [cls for cls, member in unions.get(group, {}).items() if name in hints(member)]
    return f": that is a key of {owners[0]}; add {group}={owners[0]}" if owners else ""


def _replace(config: Any, parents: list[str], last: str, value: object) -> Any:
    if not parents:
        return dataclasses.replace(config, **{last: value})
    inner = _replace(getattr(config, parents[0]), parents[1:], last, value)
    return dataclasses.replace(config, **{parents[0]: inner})


def _say_deepspeed(file: str) -> None:
    """Tell the strategies (strategies/choice.py) as `accelerate launch` does."""
    said = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if said.lower() != "none" and Path(said).resolve() != Path(file).resolve():
        raise ConfigError(f"--deepspeed_config {file} contradicts the launcher's {said}: give one")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = file


def _choose(value: str, options: Mapping[str, Any], what: str) -> str:
    short = {name.lower().removesuffix("config"): name for name in options}
    word = value.lower().removesuffix("config")
    if word in short:
        return short[word]
    raise ConfigError(
        f"no {what} '{value}'{suggestion(word, short)}; there are: {', '.join(options)}"
    )


def _words_for(key: str, hint: Any, value: str) -> list[str]:
    if get_origin(hint) is tuple:
        parts = value.strip("()[] ").replace(" ", ",").split(",")
        return [f"--{key}", *(part for part in parts if part)]
    if bool in members_of(hint) and value.lower() in ("true", "false"):
        value = value.capitalize()
    if hint is int and "e" in value.lower():
        value = _whole(value)
    return [f"--{key}={value}"]  # one word: a value may begin with dashes


def _whole(value: str) -> str:
    """2e8 as 200000000; what is no whole number stays as it is, for tyro to refuse."""
    try:
        number = float(value)
    except ValueError:
        return value
    return str(int(number)) if number.is_integer() else value


def _tyro(config: C, words: list[str]) -> C:
    import tyro

    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    with nullcontext() if _is_first_process() else redirect_stderr(None):
        return tyro.cli(type(config), default=config, args=words, config=markers)


def _print_help(config: object, presets: Mapping[str, Any], default: str) -> NoReturn:
    if _is_first_process():
        names = ", ".join(f"{name} (default)" if name == default else name for name in presets)
        try:
            print("usage: [--preset NAME | --config FILE] [--dry-run] [key=value ...]")
            print("       [--deepspeed_config FILE]")
            print(f"presets: {names}")
            for key, members in _union_fields(config).items():
                print(f"{key} is one of: {', '.join(members)} ({key}=NAME)")
            print("keys (written as key=value, the dashes may be left out):", flush=True)
            _tyro(config, ["--help"])
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
