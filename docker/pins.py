"""What pip installs beside a base image's torch, and the versions that it may choose.

Writes requirements.txt (pyproject.toml's dependencies) and pins.txt. Where several places name a
package, the first of these says its version: the torch that is there, the base image's constraint
file (NGC has one; its packages were built and tested together), our constraints.txt.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXTRAS = ("text",)


def by_package(lines: list[str]) -> dict[str, str]:
    """The constraints of a file by normalised package name; comments and empty lines are left."""
    found = {}
    for line in lines:
        text = line.split(" #")[0].strip()
        match = NAME.match(text)
        if match:
            found[re.sub(r"[-_.]+", "-", match[0]).lower()] = text
    return found


def pins(ours: list[str], base: list[str], torch_version: str) -> list[str]:
    """The lines of pins.txt; all arguments but the last are lines of constraint files."""
    chosen = by_package(ours) | by_package(base) | {"torch": f"torch=={torch_version}"}
    return [chosen[name] for name in sorted(chosen)]


def requirements(pyproject: Path) -> list[str]:
    """The dependencies of the project and of the extras that an image has.

    torch stays among them: pip then refuses a base image whose torch is too old.
    """
    import tomllib  # Python 3.11

    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]


def main() -> str | None:
    """Read what lies in the current folder and write the two files there; a message on failure."""
    if sys.version_info < (3, 11):  # noqa: UP036  (a base image has any Python)
        return f"Genus needs Python >= 3.11 and BASE_IMAGE brings {sys.version.split()[0]}"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="may be absent")
    parser.add_argument("--torch", type=Path, required=True, help="torch_unchanged.py's record")
    arguments = parser.parse_args()
    base = arguments.base.read_text().splitlines() if arguments.base.is_file() else []
    ours = Path("constraints.txt").read_text().splitlines()
    version = json.loads(arguments.torch.read_text())["version"]
    Path("pins.txt").write_text("\n".join(pins(ours, base, version)) + "\n")
    Path("requirements.txt").write_text("\n".join(requirements(Path("pyproject.toml"))) + "\n")
    print(f"torch {version}; {len(by_package(base))} versions are the base image's")
    return None


if __name__ == "__main__":
    sys.exit(main())
