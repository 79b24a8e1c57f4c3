"""Simulate into a file, in several processes, with seeds that never collide, and resume."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, wrap_non_picklable_objects
from joblib.externals.loky import ProcessPoolExecutor
from torch import Tensor
from tqdm.auto import tqdm

from sbi_ignite.data.simulations import Simulations, open_simulations
from sbi_ignite.data.writer import SimulationWriter
from sbi_ignite.exceptions import ArgumentError, DataError
from sbi_ignite.random_state import random_states, seed_all, set_random_states

_SEED, _BATCH_ROWS = "seed", "batch_rows"
"""Attributes of the file from which a later call continues."""


def simulate_to_file(
    simulator: Callable[[Tensor], Any],
    prior: Any,
    path: str | os.PathLike[str],
    num_simulations: int,
    *,
    num_workers: int = 1,
    batch_rows: int = 100,
    seed: int | None = None,
    show_progress: bool = True,
    check_noise: bool = True,
) -> Simulations:
    """Draw parameters from a prior, simulate, and write both to a file as they come.

    A call that is interrupted or killed is repeated as it was and continues after the last batch in
    the file. What a batch holds depends on the seed, its number and its size: parameters and noise
    are drawn from python's, numpy's and torch's global generators, which are seeded for every batch
    from a tree of seeds (`numpy.random.SeedSequence`) in which no two are the same.

    A generator of the simulator's own, such as `rng = numpy.random.default_rng(0)` beside it,
    would repeat the same noise in every worker, and again after a resume. It is looked for by
    simulating one row several times, in two fresh processes if results differ, and refused.

    Args:
        simulator: Returns x of shape (num_rows, ...) for theta of shape (num_rows, dim_theta).
        prior: Anything with `sample((num_rows,))`.
        path: The file, see `SimulationWriter`.
        num_simulations: Rows in the file at the end.
        num_workers: Processes that simulate; -1 for one per core.
        batch_rows: Rows that are simulated and written at a time.
        seed: Decides all draws; None takes one from the operating system, which the file keeps.
        show_progress: Whether to show a progress bar.
        check_noise: Whether to look for generators that repeat, which costs up to four
            simulations.

    Returns:
        The simulations in the file, opened.

    Raises:
        DataError: If the simulator has a generator that repeats, returns the wrong number of rows,
            or the file was begun with another seed or batch size.
        ArgumentError: If a number is not positive.

    Example:
        >>> import tempfile
        >>> from sbi.utils import BoxUniform
        >>> prior = BoxUniform(torch.zeros(2), torch.ones(2))
        >>> path = tempfile.mkdtemp() + "/sims.h5"
        >>> simulations = simulate_to_file(
        ...     lambda theta: theta + torch.randn_like(theta), prior, path, 500, show_progress=False
        ... )
        >>> len(simulations)
        500
    """
    for name, value in (("num_simulations", num_simulations), ("batch_rows", batch_rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name}: expected a positive integer, got {value!r}.")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers == 0:
        raise ArgumentError(f"num_workers: expected a positive integer or -1, got {num_workers!r}.")
    with SimulationWriter(path, chunk_rows=batch_rows) as writer:
        entropy = _entropy(writer, seed, batch_rows)
        if not writer.num_rows:  # before any row: a file with rows tells how they were drawn
            writer.annotate(**{_SEED: str(entropy), _BATCH_ROWS: batch_rows})
        begin = writer.num_rows // batch_rows
        num_batches = -(-num_simulations // batch_rows)
        if check_noise and begin < num_batches:
            _refuse_repeated_noise(simulator, prior, entropy)
        sizes = [min(batch_rows, num_simulations - i * batch_rows) for i in range(num_batches)]
        jobs = (
            delayed(_simulate)(simulator, prior, entropy, i, sizes[i])
            for i in range(begin, num_batches)
        )
        # A batch that a smaller num_simulations had cut short is simulated again, and completed.
        have = writer.num_rows - begin * batch_rows
        bar = (
            tqdm(
                total=num_simulations, initial=writer.num_rows, unit=" simulations", unit_scale=True
            )
            if show_progress
            else nullcontext()
        )
        with bar as progress:
            for theta, x in _in_order(jobs, num_workers):
                writer.append(theta[have:], x[have:])
                if progress is not None:
                    progress.update(len(theta) - have)
                have = 0
    return open_simulations(path, num_rows=num_simulations)


def _in_order(jobs: Iterator[Any], num_workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    if num_workers == 1:
        for function, args, kwargs in jobs:
            before = random_states()
            try:
                yield function(*args, **kwargs)
            finally:
                set_random_states(before)
        return
    # Results wait for the disk, not in memory: no more is dispatched than workers need.
    parallel = Parallel(n_jobs=num_workers, return_as="generator", pre_dispatch="2*n_jobs")
    yield from parallel(jobs)  # type: ignore[misc] # joblib's types miss `return_as`


def _entropy(writer: SimulationWriter, seed: int | None, batch_rows: int) -> int:
    """Return the seed of a file that is begun or continued."""
    known = writer.attributes
    if not known or not writer.num_rows:
        return int(np.random.SeedSequence(seed).entropy)  # type: ignore[arg-type] # one integer
    if _SEED not in known:
        raise DataError(
            f"{writer.path}: expected a file that simulate_to_file() has begun, got one of a "
            "SimulationWriter, whose draws are not known. Simulate into another file, and open "
            "both together."
        )
    before, rows = int(known[_SEED]), int(known[_BATCH_ROWS])
    if seed is not None and seed != before:
        raise DataError(
            f"{writer.path}: the file was begun with seed {before}, got seed {seed}. Leave the "
            "seed out to continue, or simulate into another file."
        )
    if rows != batch_rows:
        raise DataError(
            f"{writer.path}: the file was begun with batch_rows={rows}, got {batch_rows}. Continue "
            f"with {rows}."
        )
    return before


def _simulate(
    simulator: Callable[[Tensor], Any], prior: Any, entropy: int, number: int, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Draw and simulate one batch, in whatever process."""
    seed_all(np.random.SeedSequence(entropy, spawn_key=(number, num_rows)))
    theta = torch.as_tensor(prior.sample((num_rows,)))
    return theta, _checked(simulator(theta), num_rows)


def _checked(x: Any, num_rows: int) -> Tensor:
    x = torch.as_tensor(np.asarray(x)) if not isinstance(x, Tensor) else x
    if x.ndim == 0 or len(x) != num_rows:
        raise DataError(
            f"simulator: expected x with one row for each of {num_rows} parameters, got shape "
            f"{tuple(x.shape)}. sbi's simulators take a batch of theta, shape (num_rows, "
            "dim_theta)."
        )
    return x.detach()


# --- generators that repeat


def _refuse_repeated_noise(simulator: Callable[[Tensor], Any], prior: Any, entropy: int) -> None:
    """Refuse a simulator whose noise comes from a generator that is copied with it.

    Raises:
        DataError: If it is one.
    """
    before = random_states()
    try:
        pickled = pickle.dumps(wrap_non_picklable_objects(simulator))
        seed_all(np.random.SeedSequence((entropy, 0)))
        theta = torch.as_tensor(prior.sample((1,)))
        first, second = _twice(pickled, theta)
    finally:
        set_random_states(before)
    if torch.equal(first, second):
        return  # whatever noise there is comes from the generators that are seeded
    elsewhere = []
    for _ in range(2):
        with ProcessPoolExecutor(max_workers=1) as process:
            elsewhere.append(process.submit(_twice, pickled, theta).result())
    if not torch.equal(elsewhere[0][0], elsewhere[1][0]):
        return  # every call, or every process, draws from the operating system
    raise DataError(
        "simulator: it draws noise from a random generator of its own, which begins anew in every "
        "worker and after every resume, so that the same noise would repeat. Draw from "
        "torch (torch.randn), numpy.random.normal(...) and the like, which are seeded for every "
        "batch, or make the generator inside the simulator: "
        "numpy.random.default_rng(numpy.random.randint(2**31))."
    )


def _twice(pickled: bytes, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Simulate the same parameters twice, with the global generators in the same state."""
    simulator = pickle.loads(pickled)
    results = []
    for _ in range(2):
        seed_all(np.random.SeedSequence(0))
        results.append(_checked(simulator(theta.clone()), len(theta)))
    # Bits, so that NaN equals NaN.
    return tuple(  # type: ignore[return-value] # a pair
        torch.frombuffer(bytearray(r.cpu().numpy().tobytes() or b"\0"), dtype=torch.uint8)
        for r in results
    )
