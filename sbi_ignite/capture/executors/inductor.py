"""Compile a recorded graph into fused kernels by torch's inductor, ahead of time.

A recording holds the backward pass too, so the compiler sees a whole step at once and autograd is
not around it. Products of matrices stay with torch's library; everything between them is fused.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, fx

from sbi_ignite.capture.executors.base import Run
from sbi_ignite.capture.executors.generated_python import GeneratedPython
from sbi_ignite.capture.executors.torchscript import TorchScript
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.passes.cleanup import copied
from sbi_ignite.capture.private_torch import (
    INDUCTOR,
    compile_ahead,
    compiled_library,
    lacks,
    storage_of,
)
from sbi_ignite.capture.recording import Recording
from sbi_ignite.capture.report import in_a_line, logger
from sbi_ignite.processor import about_processor

LIBRARY, CALLS, DIGEST, VERDICT = "step.so", "step.json", "step.sha256", "not-faster.txt"
RUNS = 7
"""Runs after which the faster way is known."""
MEANT_FOR_PEOPLE = re.compile(r"No working C\+\+ compiler|Compiler: .* is not found")

OPTIONS = {
    "fallback_random": True,
    "compile_threads": 1,
    "cpp_cache_precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O1",
}
"""Random numbers are torch's own, so that a compiled step draws what an eager one draws. No worker
processes stay behind. Headers compiled in advance and a better optimized wrapper take 10 s more and
save nothing."""


class Inductor:
    """Runs recordings as libraries that `torch._inductor` has compiled for the CPU.

    Compiling takes between ten seconds and two minutes. Libraries are kept in `cache_directory()`,
    where later trainings with the same network and batch size find them, in milliseconds. Beside
    each it says whether it is faster than the recording, so that this is decided only once: a
    training that is resumed must compute its steps as before.
    """

    name = "inductor"
    exact = False

    def missing(self) -> str:
        """Return what torch lacks."""
        return lacks(INDUCTOR)

    def prepare(self, recording: Recording, graph: fx.Graph, inputs: Sequence[Tensor]) -> Run:
        """Return a function that runs a graph, see `Executor`.

        Raises:
            NotTraceable: If it cannot be compiled, a tensor is not on the CPU, or it is not faster.
        """
        captured = recording.captured
        if any(tensor.device.type != "cpu" for tensor in (*captured, *inputs)):
            raise NotTraceable("steps are compiled for the CPU only")
        try:
            library = _library(recording, graph, [*captured, *inputs])
            call = compiled_library(library)
        except Exception as error:
            raise NotTraceable(_why(error)) from error

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(call([*captured, *inputs]))

        _check_ownership(run(inputs), [*captured, *inputs])
        with FileLock(library.parent.with_suffix(".lock")):
            verdict = library.parent / VERDICT
            if not verdict.exists():
                other = GeneratedPython() if TorchScript().missing() else TorchScript()
                recorded = other.prepare(recording, copied(graph), inputs)
                verdict.write_text(_verdict(run, recorded, inputs))
            not_faster = verdict.read_text()
        if not_faster:
            raise NotTraceable(not_faster)
        return run


def cache_directory() -> Path:
    """Return where compiled steps are kept.

    It is `sbi_ignite/steps` in TORCHINDUCTOR_CACHE_DIR, XDG_CACHE_HOME or `~/.cache`, the first of
    these that is set and can be written to; else in the directory for temporary files.
    """
    home = Path("~").expanduser()
    named = [os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")]
    for place in (*(Path(name) for name in named if name), home / ".cache"):
        directory = place / "sbi_ignite" / "steps"
        with suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(directory, os.W_OK):
                return directory
    directory = Path(tempfile.gettempdir()) / f"sbi_ignite_steps_{getpass.getuser()}"
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # Libraries are run as they are found: not those that somebody else may have put there.
    return directory if _is_private(directory) else Path(tempfile.mkdtemp())


def _is_private(directory: Path) -> bool:
    """Return whether a directory is this user's, and nobody else may write to it."""
    found = directory.lstat()
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return mine and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022


def _library(recording: Recording, graph: fx.Graph, tensors: Sequence[Tensor]) -> Path:
    """Return the library of a graph, compiled now if it is not in the cache."""
    directory = cache_directory()
    place = directory / _key(recording, tensors)
    library = place / LIBRARY
    if _is_whole(library):
        return library
    with FileLock(place.with_suffix(".lock")):
        if _is_whole(library):  # another process was faster
            return library
        logger.info("compile='inductor': compiling a step, which may take a minute or two.")
        began = time.perf_counter()
        folder = directory / f"compiling-{place.name}"
        shutil.rmtree(folder, ignore_errors=True)  # a process that was killed may have left it
        kept = folder / "kept"
        kept.mkdir(parents=True)
        try:
            compile_ahead(copied(graph), tensors, folder / LIBRARY, OPTIONS)
            (folder / LIBRARY).rename(kept / LIBRARY)
            # What it needs to call operations without a C interface, if there are any, is looked
            # for beside it by its own name, but written by that of its source.
            for path in folder.glob("*.json"):
                if not path.stem.endswith("_metadata"):
                    path.rename(kept / CALLS)
            (kept / DIGEST).write_text(_digest(kept / LIBRARY))
            shutil.rmtree(place, ignore_errors=True)
            kept.rename(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    logger.warning(
        "compile='inductor': a step was compiled in %.0f s; later trainings with this network and "
        "batch size find it in %s.",
        time.perf_counter() - began,
        directory,
    )
    return library


def _verdict(compiled: Run, recorded: Run, inputs: Sequence[Tensor]) -> str:
    """Return why a compiled step is not worth it; "" if it is faster than the recording."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    fastest = [float("inf"), float("inf")]
    for _ in range(RUNS):
        for way, run in enumerate((compiled, recorded)):
            began = clock()
            run(inputs)
            fastest[way] = min(fastest[way], clock() - began)
    if fastest[0] < fastest[1]:
        return ""
    took = [f"{1e3 * seconds:.3g} ms" for seconds in fastest]
    return f"a compiled step is not faster ({took[0]}, the recorded one takes {took[1]})"


def _is_whole(library: Path) -> bool:
    """Return whether a library is there as it was written: loading half of one ends the process."""
    try:
        return (library.parent / DIGEST).read_text() == _digest(library)
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _key(recording: Recording, tensors: Sequence[Tensor]) -> str:
    """Return what tells a compiled step from all others."""
    parts = (
        (LIBRARY, CALLS),  # what earlier versions put beside libraries has other names
        recording.code,
        [(tuple(t.shape), t.stride(), str(t.dtype)) for t in tensors],
        sorted(OPTIONS.items()),
        torch.__version__,
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        (platform.system(), platform.machine(), platform.libc_ver()),
        about_processor("flags", "Features"),  # code is compiled for exactly these instructions
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


def _check_ownership(outputs: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Refuse outputs that share memory with inputs or with each other: callers write to them."""
    taken = {storage_of(tensor) for tensor in given}
    for output in outputs:
        if storage_of(output) in taken:
            raise NotTraceable("its compiled form returns tensors that share memory")
        taken.add(storage_of(output))


def _why(error: Exception) -> str:
    """Return in words why a step was not compiled."""
    said = in_a_line(error)
    if MEANT_FOR_PEOPLE.search(said):
        return "no C++ compiler was found, which compiling a step needs (torch looks for g++)"
    return f"torch could not compile a step ({type(error).__name__}: {said})"
