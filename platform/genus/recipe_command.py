"""What a recipe makes of a command line, found without training: by its own parser."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

from genus import config
from genus.errors import ConfigError


class _Parsed(BaseException):  # no Exception: a recipe must not catch it
    def __init__(self, command: config.Command[Any]) -> None:
        self.command = command


def import_script(script: Path) -> ModuleType | None:
    """A recipe's file as a module; None where it is not there."""
    spec = importlib.util.spec_from_file_location(f"genus_recipe_{script.stem}", script)
    if spec is None or spec.loader is None or not script.is_file():
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    if str(script.parent) not in sys.path:
        sys.path.append(str(script.parent))  # as when it runs as a script
    spec.loader.exec_module(module)
    return module


def import_recipe(recipe: Path) -> ModuleType:
    """The recipe as a module. ConfigError where it is not there or not a recipe."""
    module = import_script(recipe)
    if module is None:
        raise ConfigError(f"there is no recipe {recipe}")
    if not hasattr(module, "main") or not hasattr(module, "config"):
        raise ConfigError(f"{recipe} is no recipe: it has no main() that calls config.parse")
    return module


def command_of(module: ModuleType, words: Sequence[str]) -> config.Command[Any]:
    """The config that the recipe would train with: its ``main`` is run up to ``config.parse``.

    What is wrong with ``words`` ends the process with the recipe's own message.
    """

    def parse(
        config_class: type[Any], presets: Mapping[str, Any], default: str, argv: object = None
    ) -> NoReturn:
        raise _Parsed(config.parse(config_class, presets, default, words))

    kept = vars(module)["config"]
    vars(module)["config"] = SimpleNamespace(**{**vars(config), "parse": parse})
    try:
        module.main()
    except _Parsed as parsed:
        return parsed.command
    finally:
        vars(module)["config"] = kept
    raise ConfigError(f"{module.__file__} is no recipe: its main() never calls config.parse")
