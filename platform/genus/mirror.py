"""The W&B mirror: a process of its own that follows the run folder.

W&B may be absent, hang for minutes on a dead server or die; none of that can stop or slow a step,
because training never calls it: it writes its JSON lines, and this process reads them.

    python -m genus.mirror RUN --mode offline --project genus     (started by the run itself)
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genus.tracking import BETWEEN_TEXTS, parse_lines

POLL_SECONDS = 1.0
GRACE_SECONDS = 300.0
"""How long the mirror may go on sending after the run's process is gone."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Who else is told about the run; the run folder's JSON lines are always written."""

    wandb: Literal["auto", "off", "offline", "online"] = "auto"
    """W&B: auto is online where an API key is configured and offline elsewhere."""
    project: str = "genus"
    """W&B project."""


def start_mirror(folder: Path, tracking: TrackingConfig) -> subprocess.Popen[bytes] | None:
    """Start the mirror process for a run folder; None if it is off or can't be started."""
    mode = _mode(tracking)
    if mode == "off":
        return None
    command = [sys.executable, "-m", "genus.mirror", str(folder), "--mode", mode]
    command += ["--project", tracking.project, "--parent", str(os.getpid())]
    command += ["--grace", str(GRACE_SECONDS)]
    try:
        with (folder / "wandb.log").open("ab") as log:
            # Its own session: a signal to the job's process group is ours to handle, not W&B's.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        print(f"W&B mirror not started: {error}", file=sys.stderr, flush=True)
        return None


def _mode(tracking: TrackingConfig) -> str:
    if tracking.wandb != "auto":
        return tracking.wandb
    return "online" if os.environ.get("WANDB_API_KEY") or _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether `wandb login` has left a key; a .netrc may well be there for other hosts."""
    for path in (Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            if "wandb" in path.read_text():
                return True
        except (OSError, UnicodeDecodeError):
            continue
    return False


def follow(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole rows of a growing JSON-lines file from a byte offset on, and the next offset."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    end = text.rfind(b"\n") + 1
    return parse_lines(text[:end]), offset + end


def _gone(parent: int) -> bool:
    # A dead process can keep its number for long (a zombie), but its children are given away.
    return os.getppid() != parent


def _outlive_no_parent(parent: int, grace: float) -> None:
    """End this process ``grace`` seconds after its parent, whatever W&B is doing then."""

    def watch() -> None:
        while not _gone(parent):
            time.sleep(POLL_SECONDS)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _rounds(folder: Path, parent: int, state: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Batches of new rows until the run has closed or its process is gone."""
    while True:
        gone = _gone(parent)  # asked before reading: what is read then is all there is
        metrics, state["metrics"] = follow(folder / "metrics" / "rank-0.jsonl", state["metrics"])
        events, state["events"] = follow(folder / "events.jsonl", state["events"])
        yield metrics + events
        # An earlier session's "closed", not yet told when that one ended, is not the last event.
        if gone or (events and events[-1]["event"] == "closed"):
            return
        time.sleep(POLL_SECONDS)


def _mirror(folder: Path, mode: str, project: str, parent: int) -> None:
    import wandb

    state_path = folder / "wandb.json"
    state: dict[str, Any] = {"metrics": 0, "events": 0, "samples": -1}
    state["id"] = f"genus-{os.urandom(6).hex()}"
    if state_path.exists():
        state = json.loads(state_path.read_text())
    environment = json.loads((folder / "environment.json").read_text())
    _keep(state_path, state)  # at once: a kill before the first row must not change the id
    run = wandb.init(
        id=state["id"],
        resume="allow",
        project=project,
        name=folder.name,
        dir=folder,
        mode=mode,  # type: ignore[arg-type]
        config={
            "genus": json.loads((folder / "config.json").read_text()),
            "git_commit": environment["git_commit"],
            "recipe": environment["recipe"],
        },
        settings=wandb.Settings(console="off", disable_git=True),
    )
    # An offline resume restarts W&B's own step at 0, so samples are the axis of everything.
    run.define_metric("samples")
    run.define_metric("*", step_metric="samples")
    code = folder / "code.diff"
    if code.exists() and code.stat().st_size:
        run.save(str(code), base_path=str(folder), policy="now")
    for rows in _rounds(folder, parent, state):
        for row in rows:
            if "event" in row:
                _tell_event(run, wandb, folder, row)
            elif row.get("samples", -1) > state["samples"]:
                # A resumed run repeats what it did after its last checkpoint: tell it once.
                state["samples"] = row["samples"]
                run.log({k: v for k, v in row.items() if k != "time" and not isinstance(v, str)})
        if rows:
            _keep(state_path, state)
    run.finish()


def _keep(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(state))
    temporary.replace(path)


def _tell_event(run: Any, wandb: Any, folder: Path, event: dict[str, Any]) -> None:
    image = event.get("image")
    if image and (folder / image).exists():
        picture = wandb.Image(str(folder / image))
        run.log({f"samples/{event['event']}": picture, "samples": event.get("samples", 0)})
    text = event.get("text")
    if text and (folder / text).is_file():
        # As a stream: a string might be taken for a path.
        page = wandb.Html(io.StringIO(page_of(folder / text)), inject=False)
        run.log({f"samples/{event['event']}": page, "samples": event.get("samples", 0)})
    if event["event"] in ("evaluation", "finish"):
        run.summary.update({f"{event['event']}/{k}": v for k, v in event.items() if k != "event"})


def page_of(path: Path) -> str:
    """A web page that shows a file of texts as they are, whatever they hold.

    It is ASCII: no browser or locale can read it otherwise than it is meant.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    shown = []
    for text in texts.split(BETWEEN_TEXTS):
        # A browser drops NULs, and the first line break of <pre>, which is ours.
        escaped = html.escape(text.replace("\0", "\N{REPLACEMENT CHARACTER}"))
        plain = escaped.encode("ascii", "xmlcharrefreplace").decode("ascii")
        shown.append(f'<pre style="white-space: pre-wrap">\n{plain}</pre>')
    return "<!DOCTYPE html>\n" + "\n<hr>\n".join(shown) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--mode", choices=("offline", "online"), default="offline")
    parser.add_argument("--project", default="genus")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS)
    arguments = parser.parse_args()
    _outlive_no_parent(arguments.parent, arguments.grace)
    try:
        _mirror(arguments.run, arguments.mode, arguments.project, arguments.parent)
    except Exception as error:
        print(f"mirror ended: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
