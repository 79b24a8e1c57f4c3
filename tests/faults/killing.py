"""Kill runs of a program at random moments and compare their results with undisturbed runs.

Run as `python -m tests.faults.killing NAME SEED KILLS FOLDER`. This process imports everything once
and forks a child per start, so that a start costs milliseconds instead of seconds; the children are
real processes and die by SIGKILL.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.faults import programs

PATIENCE = 1500
"""Seconds that a run may take on a busy machine before it counts as one that hangs."""


def start(name: str, directory: Path, out: Path) -> int:
    """Fork a process that runs a program and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        programs.run(name, directory, out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise AssertionError("not reached")


def wait(child: int, seconds: float) -> int | None:
    """Return the exit status of a process, None if it still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    return None


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def undisturbed(name: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Return the results of a run that nobody kills, and its seconds."""
    begin = time.monotonic()
    status = wait(start(name, folder / "calm", folder / "calm.pt"), PATIENCE)
    if status != 0:
        raise SystemExit(f"{name}: the undisturbed run ended with {status}")
    return torch.load(folder / "calm.pt", weights_only=True), time.monotonic() - begin


def disturbed(name: str, folder: Path, seed: int, kills: int, seconds: float) -> dict[str, Any]:
    """Return the results of a run that is killed `kills` times at random moments."""
    chance = random.Random(seed)
    directory, out = folder / "killed run größer", folder / "killed.pt"
    done = 0
    while done < kills:
        child = start(name, directory, out)
        # Mostly short lives, so that kills fall on loading and saving too, and on the same epoch.
        status = wait(child, chance.uniform(0.0, seconds * chance.choice((0.2, 0.6))))
        if status is None:
            kill(child)
            done += 1
        elif status != 0:
            raise SystemExit(
                f"{name}: seed {seed}, after {done} kills: a start ended with {status}"
            )
        else:
            # It finished between two kills: the next kills hit a new run.
            break
    status = wait(start(name, directory, out), PATIENCE)
    if status != 0:
        raise SystemExit(f"{name}: seed {seed}, after {done} kills: the end was {status}")
    print(f"KILLS {done}")
    return torch.load(out, weights_only=True)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two nested results differ, bitwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted({*a, *b}, key=str)
        return [d for n in names for d in differences(a.get(n), b.get(n), f"{path}/{n}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [f"{path}: tensors differ"]
    same = a == b or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)
    return [] if same else [f"{path}: {a!r} against {b!r}"]


def main() -> None:
    name, seed, kills, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    calm, seconds = undisturbed(name, folder)
    killed = disturbed(name, folder, seed, kills, seconds)
    found = differences(calm, killed)
    if found:
        raise SystemExit(f"{name}: seed {seed}: not the undisturbed run:\n" + "\n".join(found[:60]))
    print(f"EQUAL {name} in {seconds:.1f} s")


if __name__ == "__main__":
    main()
