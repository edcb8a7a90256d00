"""Run by test_strategies.py on several ranks: recipes, one after the other, in one process.

strategy_worker.py JOBS.json      a list of [recipe, [arguments]] or ["copy", [from, to, samples]]

The first rank prints the outcome of each as a JSON line: "ok", or the message of a refusal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from genus.parallel import World


def main() -> None:
    World.close = lambda self: None  # type: ignore[method-assign]  # the next one goes on in it
    for recipe, arguments in json.loads(Path(sys.argv[1]).read_text()):
        if recipe == "copy":
            World().broadcast(copy_run(*arguments) if World().is_first else None)
            continue
        outcome = run(Path(recipe), arguments)
        if World().is_first:
            print(json.dumps([recipe, arguments, outcome]), flush=True)
    World().barrier()
    if dist.is_initialized():
        dist.destroy_process_group()


def copy_run(source: str, target: str, samples: str) -> None:
    """A run as it was at ``samples``: without later checkpoints and without its end."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("done", "owner*"))
    for checkpoint in (Path(target) / "checkpoints").glob("samples-*"):
        if int(checkpoint.name.removeprefix("samples-")) > int(samples):
            shutil.rmtree(checkpoint)


def run(recipe: Path, arguments: list[str]) -> str:
    """What became of it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.argv = [str(recipe), *arguments]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            module.main()
    except SystemExit as end:
        if end.code != 2:
            raise
        return f"refused: {told.getvalue().strip().removeprefix('error: ')}"
    return "ok"


if __name__ == "__main__":
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # of two ranks: two nodes, for hybrid sharding
    main()
