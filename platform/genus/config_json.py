"""A config as JSON and back, floats to the bit and unions included."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import types
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as hints

from genus.errors import ConfigError

C = TypeVar("C")


def dumps(config: object) -> str:
    """JSON that ``loads`` turns into an equal config, floats to the bit and unions included."""
    return json.dumps(_encode(config, type(config)), indent=2) + "\n"


def loads(config_class: type[C], text: str) -> C:
    """The config in a JSON text; ConfigError names the first key that is unknown or wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from None
    return _decode(data, config_class, "")  # type: ignore[no-any-return]


def load(config_class: type[C], path: str | Path) -> C:
    """The config in a JSON file."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the config file {path}: {error}") from None
    try:
        return loads(config_class, text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _encode(value: Any, hint: Any) -> Any:
    if is_dataclass(value):
        types_ = hints(type(value))
        body = {
            f.name: _encode(getattr(value, f.name), types_[f.name])
            for f in dataclasses.fields(value)
        }
        is_choice = len(classes_of(hint)) > 1
        return {"class": type(value).__name__, **body} if is_choice else body
    if isinstance(value, tuple):
        return [_encode(item, None) for item in value]
    return value


def _decode(data: Any, hint: Any, path: str) -> Any:
    where = path or "the config"
    members = members_of(hint)
    if data is None and types.NoneType in members:
        return None
    members = [m for m in members if m is not types.NoneType]
    classes = classes_of(hint)
    if classes:
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: expected an object, found {data!r}")
        data = dict(data)
        name = data.pop("class", None) if len(classes) > 1 else next(iter(classes))
        if name not in classes:
            raise ConfigError(f"{where}: class is {name!r}, not one of {', '.join(classes)}")
        return _decode_fields(data, classes[name], path)
    return _decode_leaf(data, members[0] if len(members) == 1 else hint, where)


def _decode_fields(data: dict[str, Any], cls: Any, path: str) -> Any:
    types_ = hints(cls)
    prefix = f"{path}." if path else ""
    for key in data:
        if key not in types_:
            raise ConfigError(f"no key '{prefix}{key}'{suggestion(key, types_)}")
    fields = {key: _decode(value, types_[key], prefix + key) for key, value in data.items()}
    try:
        return cls(**fields)
    except TypeError as error:
        raise ConfigError(f"{path or 'the config'}: {error}") from None


def _decode_leaf(data: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(data, list):
            raise ConfigError(f"{where}: expected a list, found {data!r}")
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(data)
        if len(data) != len(kinds):
            raise ConfigError(f"{where}: expected {len(kinds)} values, found {data!r}")
        return tuple(
            _decode_leaf(item, kind, where) for item, kind in zip(data, kinds, strict=True)
        )
    if origin is Literal:
        if data not in get_args(hint):
            raise ConfigError(
                f"{where}: {data!r} is not one of {', '.join(map(str, get_args(hint)))}"
            )
        return data
    if hint is float and type(data) is int and abs(data) <= sys.float_info.max:
        return float(data)
    if not isinstance(data, hint) or (hint is int and isinstance(data, bool)):
        raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {data!r}")
    return data


def members_of(hint: Any) -> list[Any]:
    """The members of a union, or the one type that ``hint`` is."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def classes_of(hint: Any) -> dict[str, type[Any]]:
    """The dataclasses among a hint's members, by name."""
    return {m.__name__: m for m in members_of(hint) if isinstance(m, type) and is_dataclass(m)}


def suggestion(word: str, options: Iterable[Any]) -> str:
    """The nearest of ``options`` as the end of an error message; empty where none is near."""
    names = [str(option) for option in options]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not close:  # a leaf's name without its group: lr for optim.lr
        close = [name for name in names if name.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    return f"; did you mean '{close[0]}'?" if close else ""
