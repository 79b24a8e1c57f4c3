"""Train members by joblib, on whatever backend is in force, and outlive workers that die."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import joblib
from joblib.parallel import ThreadingBackend, get_active_backend
from torch import Tensor

from sbi_ignite.ensembles.members import Failure, Outcome, Task, train_member
from sbi_ignite.ensembles.stacks import train_stack
from sbi_ignite.exceptions import ArgumentError, SettingsError

_OF_THIS_MACHINE = (
    "LokyBackend",
    "MultiprocessingBackend",
    "SequentialBackend",
    "ThreadingBackend",
)
Stacked = Literal[False, True, "auto"]
"""Whether members are trained stacked; "auto" measures whether it pays."""

_TRIES_ALONE = 2
"""How often a member whose worker died is trained again, alone in a worker."""

_ADVICE = (
    "Its worker died, most often because memory ran out: train fewer members at a time (n_jobs), "
    "or with a smaller batch_size. With checkpoint=, a second call continues it"
)


@dataclass(frozen=True)
class Workers:
    """Where members are trained.

    Attributes:
        n_jobs: Members at a time.
        backend: "sequential" for this process, or the name of joblib's backend.
    """

    n_jobs: int
    backend: str

    @property
    def in_this_process(self) -> bool:
        """Whether members are trained one after the other in this process."""
        return self.backend == "sequential"

    @classmethod
    def found(cls, n_jobs: int | None, num_members: int) -> Workers:
        """Return the workers that `n_jobs` and joblib's configuration ask for.

        Args:
            n_jobs: Members at a time; None leaves it to `joblib.parallel_config`, and to 1 without;
                negative numbers count from the number of cores, as in joblib.
            num_members: Members to train.

        Raises:
            ArgumentError: If joblib's backend runs threads, or `n_jobs` is not a number.
            SettingsError: If `n_jobs` is 0, or more than this machine has cores.
        """
        if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, int)):
            raise ArgumentError(f"n_jobs: expected a whole number or None, got {n_jobs!r}.")
        backend, found = get_active_backend()
        configured: Any = found  # joblib's annotations include its own default
        if n_jobs == 0:
            raise SettingsError("n_jobs: expected at least 1, or -1 for all cores, got 0.")
        local = type(backend).__name__ in _OF_THIS_MACHINE
        cores = joblib.cpu_count()
        asked = configured if n_jobs is None else n_jobs
        asked = getattr(backend, "default_n_jobs", 1) if asked is None else asked
        if local and asked > cores:
            raise SettingsError(
                f"n_jobs: expected at most the {cores} cores of this machine, got {asked}. Take "
                "-1 for all of them; members do not train faster by sharing a core."
            )
        effective = joblib.effective_n_jobs(asked)
        if local and effective == 1:
            return cls(1, "sequential")
        if isinstance(backend, ThreadingBackend):
            raise ArgumentError(
                "train_ensemble: expected a backend of joblib that runs processes, got "
                f"{type(backend).__name__} from joblib.parallel_config. Threads share torch's "
                'random numbers. Take "loky", Dask or Ray.'
            )
        return cls(min(effective, num_members), type(backend).__name__.removesuffix("Backend"))

    def outcomes(
        self, tasks: Sequence[Task], tensors: Sequence[Tensor], stacked: Stacked = False
    ) -> Iterator[Outcome]:
        """Train members and yield what became of each, as soon as it is known.

        Args:
            tasks: The members.
            tensors: Their simulations, for members that are trained in this process.
            stacked: Whether to train members stacked, as many stacks at a time as members else.
        """
        if self.in_this_process:
            if stacked:
                yield from train_stack(tasks, stacked, tensors)
            else:
                yield from (train_member(task, tensors) for task in tasks)
            return
        waiting = {task.index: task for task in tasks}
        groups = [tasks[i :: self.n_jobs] for i in range(self.n_jobs)] if stacked else []
        try:
            for outcome in self._parallel(groups or [[task] for task in tasks], stacked):
                del waiting[outcome.index]
                yield outcome
        except Exception as error:
            died: BaseException = error
        else:
            return
        # It is not known whose worker died, and all others went with it.
        for task in waiting.values():
            for _ in range(_TRIES_ALONE):
                try:
                    yield from self._parallel([[task]], stacked, 2)
                    break
                except Exception as error:
                    died = error
            else:
                yield _dead(task, died)

    def _parallel(
        self, groups: Iterable[Sequence[Task]], stacked: Stacked, n_jobs: int | None = None
    ) -> Iterator[Outcome]:
        """Train groups of members by joblib."""
        n_jobs = self.n_jobs if n_jobs is None else n_jobs
        backend, _ = get_active_backend()
        streams = bool(getattr(backend, "supports_return_generator", False))
        # n_jobs=1 would train in this process, and die with it.
        in_processes = self.backend in ("Loky", "Multiprocessing")
        options: dict[str, Any] = {
            "n_jobs": max(2, n_jobs) if in_processes else n_jobs,
            "batch_size": 1,
            "pre_dispatch": "all",
            "return_as": "generator_unordered" if streams else "list",
        }
        parallel = joblib.Parallel(**options)
        found: Any = parallel(joblib.delayed(_train)(group, stacked) for group in groups)
        for outcomes in found:
            yield from outcomes


def _train(group: Sequence[Task], stacked: Stacked) -> list[Outcome]:
    """Train members in a worker."""
    return train_stack(group, stacked) if stacked else [train_member(task) for task in group]


def _dead(task: Task, error: BaseException) -> Outcome:
    """Return the outcome of a member whose worker has died."""
    message = " ".join(str(error).split())
    failure = Failure(type(error).__name__, message[:500], _ADVICE)
    return replace(Outcome(task.index, task.seeds), failure=failure)
