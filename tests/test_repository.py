"""House rules that a machine can see."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from genus import config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "genus"
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_platform_holds_no_init_which_would_hide_the_standard_library() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    words = [sys.executable, "-c", "import platform; print(platform.system())"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_there_is_one_loop() -> None:
    """Strategies make a gradient and a step of it, and the loop alone says when; plans look at one
    step, to foretell the others."""
    pattern = re.compile(r"\.backward\(|\boptimizer\.step\(")
    guilty = [p for p in [*MODULES, *RECIPES] if pattern.search(p.read_text())]
    assert [p.name for p in guilty if p.parent.name not in ("strategies", "plan")] == ["loop.py"]


def test_nothing_is_named_utils_and_nothing_unpickles_code() -> None:
    assert not [p for p in MODULES if "util" in p.stem]
    unsafe = re.compile(r"weights_only\s*=\s*False|pickle\.loads?\(|(?<![\w.])eval\(")
    assert not [p.name for p in MODULES if unsafe.search(p.read_text())]


def test_imports_have_no_cycle() -> None:
    def name(path: Path) -> str:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    names = {name(path): path for path in MODULES}
    imports: dict[str, set[str]] = {}
    for module, path in names.items():
        found: set[str] = set()
        for node in ast.parse(path.read_text()).body:  # at import time: functions' own are later
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        imports[module] = (found & set(names)) - {module}
    state: dict[str, int] = {}

    def visit(module: str, trail: list[str]) -> None:
        assert state.get(module) != 1, f"import cycle: {' -> '.join([*trail, module])}"
        if module not in state:
            state[module] = 1
            for other in imports[module]:
                visit(other, [*trail, module])
            state[module] = 2

    for module in names:
        visit(module, [])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_wiring_diagrams_with_few_keys(path: Path) -> None:
    recipe = load(path)
    assert len(path.read_text().splitlines()) <= 200
    # a GAN has two networks with a regulariser each, and what its discriminator is shown
    assert config.count_leaves(recipe.Config) <= (84 if path.stem == "gan" else 74)
    assert "tiny" in recipe.PRESETS
    for name, preset in recipe.PRESETS.items():
        assert name in (recipe.__doc__ or ""), f"{name} has no expected score and cost"
        assert config.loads(recipe.Config, config.dumps(preset)) == preset
    keys = {key for preset in recipe.PRESETS.values() for key, _, _ in config.leaf_fields(preset)}
    assert {"run.root", "run.name", "run.seed", "train.samples", "train.batch", "train.micro",
            "optim.lr", "data.url", "tracking.wandb"} <= keys  # fmt: skip


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, genus.cli; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_imports_nothing_heavy_or_optional() -> None:
    code = (
        "import sys, genus.loop, genus.run, genus.model, genus.data.stream, genus.sampling\n"
        "heavy = {'deepspeed', 'wandb', 'transformers', 'torchmetrics', 'matplotlib', 'sklearn',"
        " 'torchvision', 'tyro', 'webdataset'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
