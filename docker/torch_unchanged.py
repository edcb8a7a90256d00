"""Which torch is imported here; has it changed since it was last written down?

python torch_unchanged.py record FILE
python torch_unchanged.py check FILE      # fails with a message when it is another one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def imported() -> dict[str, str]:
    """Version and place of the torch that this Python imports."""
    import torch

    return {"version": str(torch.__version__), "path": str(Path(torch.__file__).resolve())}


def main(verb: str, file: Path) -> str | None:
    """Do it; the message of what went wrong, or None."""
    try:
        now = imported()
    except ImportError as error:
        return f"torch can't be imported by {sys.executable} ({error}): BASE_IMAGE must bring torch"
    if verb == "record":
        file.write_text(json.dumps(now) + "\n")
        return None
    before = json.loads(file.read_text())
    if now == before:
        print(f"torch {now['version']} as in the base image")
        return None
    return (
        f"torch is not the base image's any more: {before['version']} at {before['path']} became "
        f"{now['version']} at {now['path']}. Look which requirement asked for another one."
    )


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "check"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
