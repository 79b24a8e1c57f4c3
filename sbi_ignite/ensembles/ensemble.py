"""Train an ensemble: many networks on one set of simulations, as one posterior."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import torch
from sbi.inference import EnsemblePosterior
from torch import Tensor, nn

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.mixins import check_train_call
from sbi_ignite.ensembles.directory import EnsembleDirectory
from sbi_ignite.ensembles.make import make_trainers
from sbi_ignite.ensembles.members import Failure, Outcome, Task, passed_on, raised
from sbi_ignite.ensembles.progress import progress_shown
from sbi_ignite.ensembles.seeds import member_seeds
from sbi_ignite.ensembles.shipping import (
    SharedFolder,
    pack,
    pack_arguments,
    shared_folder,
    simulations_of,
    unpack,
)
from sbi_ignite.ensembles.summary import EnsembleSummary, MemberSummary, Spread, spread_of
from sbi_ignite.ensembles.tracking import Group, grouped, loggers_of
from sbi_ignite.ensembles.workers import Stacked, Workers
from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning, SettingsError
from sbi_ignite.random_state import random_states, set_random_states
from sbi_ignite.settings import TrainConfig
from sbi_ignite.summary import TrainingSummary

_SEED = "SBI_IGNITE_TRAIN__SEED"


@dataclass(frozen=True)
class _Plan:
    """How the members of an ensemble differ and are computed; see `train_ensemble`."""

    seed: int
    bootstrap: bool
    resplit: bool
    weighting: str
    threads: int


class Ensemble:
    """Trained members, and what can be made of them. `train_ensemble` makes one.

    Attributes:
        trainers: One trainer per member that has not failed. They share their simulations.
        estimators: What their `train()` returned, in the same order.
        summary: What training did.

    Example:
        >>> theta = torch.rand(60, 2)
        >>> def make_trainer():
        ...     return NPE(show_progress_bars=False).append_simulations(theta, theta)
        >>> ensemble = train_ensemble(make_trainer, members=2, config=TrainConfig(max_epochs=1))
        >>> len(ensemble.estimators)
        2
    """

    def __init__(
        self,
        plan: _Plan,
        indices: Sequence[int],
        trainers: Sequence[Any],
        estimators: Sequence[nn.Module],
        summary: EnsembleSummary,
        rounds: int = 1,
        number: int = 0,
    ) -> None:
        self.trainers, self.estimators = list(trainers), list(estimators)
        self.summary = summary
        self._plan, self._indices, self._rounds = plan, list(indices), rounds
        self._number = number

    def __len__(self) -> int:
        """Return the number of members that have not failed."""
        return len(self.trainers)

    def __repr__(self) -> str:
        """Return the line of the summary."""
        return f"Ensemble of {len(self)}: {self.summary!r}"

    def _repr_html_(self) -> str:
        """Return the table of the summary, as notebooks show it."""
        return self.summary._repr_html_()

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the members that have not failed; they add up to 1."""
        return tuple(m.weight for m in self.summary.members if m.summary is not None)

    def build_posterior(self, *args: Any, **kwargs: Any) -> EnsemblePosterior:
        """Return the mixture of the members' posteriors, with the weights of the summary.

        Args:
            *args: Passed on to `build_posterior` of every member's trainer.
            **kwargs: Likewise.
        """
        posteriors = [trainer.build_posterior(*args, **kwargs) for trainer in self.trainers]
        return EnsemblePosterior(posteriors, weights=list(self.weights))

    def spread(self, x_o: Tensor, num_samples: int = 1000, seed: int = 0, **kwargs: Any) -> Spread:
        """Return how far the members' posteriors are apart; `summary` shows it from then on.

        The random state is afterwards as it was.

        Args:
            x_o: An observation, shape (1, ...) or (...).
            num_samples: Draws from every member.
            seed: Determines them.
            **kwargs: Passed on to `build_posterior` of every member's trainer.

        Raises:
            ArgumentError: If there are not at least two members.
        """
        if len(self) < 2:
            raise ArgumentError(f"spread: expected at least 2 trained members, got {len(self)}.")
        before = random_states()
        samples = {}
        try:
            torch.manual_seed(seed)
            for index, trainer in zip(self._indices, self.trainers, strict=True):
                posterior = trainer.build_posterior(**kwargs)
                drawn = posterior.sample((num_samples,), x=x_o, show_progress_bars=False)
                samples[index] = drawn.detach().cpu().double().numpy()
        finally:
            set_random_states(before)
        found = spread_of(samples)
        self.summary = dataclasses.replace(self.summary, spread=found)
        return found

    def append_simulations(self, theta: Tensor, x: Tensor, **kwargs: Any) -> Ensemble:
        """Append simulations of a new round to all members, which share one copy of them.

        Args:
            theta: Parameters, shape (num_rows, dim_theta).
            x: Data, shape (num_rows, ...).
            **kwargs: What sbi's `append_simulations` takes, such as `proposal`.

        Returns:
            The ensemble itself, so that `.train()` can follow.
        """
        first, *others = self.trainers
        first.append_simulations(theta, x, **kwargs)
        for trainer in others:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said once
                trainer.append_simulations(theta, x, **kwargs)
            private(trainer).replace_simulations(simulations_of(first))
        return self

    def train(
        self,
        config: TrainConfig | None = None,
        loss_args: Any | None = None,
        *,
        n_jobs: int | None = None,
        stacked: Stacked = False,
        checkpoint: Any | None = None,
        logging: Any | None = None,
        **what_train_takes: Any,
    ) -> Ensemble:
        """Train all members again, usually on the simulations of a new round.

        Seeds, split and weighting are those of `train_ensemble`, and new numbers are drawn for the
        round. Below `checkpoint`, the round has a directory `round-1`, ... in that of each member.

        Args:
            config: See `train_ensemble`, likewise the others.
            loss_args: Arguments of the loss.
            n_jobs: Members at a time.
            stacked: Whether to train members stacked.
            checkpoint: Directory of the ensemble.
            logging: Where the numbers go.
            **what_train_takes: See `train_ensemble`.

        Returns:
            The ensemble itself; a member that fails leaves it.
        """
        _check_stacked(stacked)
        arguments = {
            **what_train_takes,
            "train_config": config,
            "loss_args": loss_args,
            "checkpoint": checkpoint,
            "logging": logging,
        }
        trainers = dict(zip(self._indices, self.trainers, strict=True))
        new = _train(
            trainers, arguments, self._plan, n_jobs, stacked, self._rounds, number=self._number
        )
        vars(self).update(vars(new))
        return self


def train_ensemble(
    make_trainer: Callable[[], Any] | Sequence[Any],
    members: int | None = None,
    config: TrainConfig | None = None,
    loss_args: Any | None = None,
    *,
    n_jobs: int | None = None,
    seed: int | None = None,
    bootstrap: bool = False,
    resplit: bool = False,
    weights: Literal["equal", "validation"] = "equal",
    threads: int = 1,
    stacked: Stacked = False,
    only: int | Sequence[int] | None = None,
    checkpoint: Any | None = None,
    logging: Any | None = None,
    **what_train_takes: Any,
) -> Ensemble:
    """Train several networks on one set of simulations.

    Members differ in their initial weights and in the order of the rows; on request, in the split
    or in bootstrapped rows. Member k is bit for bit the same with any `n_jobs`, on any backend of
    joblib, however many members there are, and alone (`only=k`): its numbers follow from `seed`
    and k, and it computes with `threads` threads everywhere.

    With `n_jobs` above 1, members are trained in processes by joblib: loky's, or those that
    `joblib.parallel_config(backend=...)` names, such as Dask's or Ray's. The simulations are
    written to one file (below JOBLIB_TEMP_FOLDER, or else the folder for temporary files), which
    all processes map into their memory. Each member has its own copy of everything else, callbacks
    included: what a callback collects stays in its process.

    A member that fails is reported in the summary, and the others are returned.

    Args:
        make_trainer: Returns a trainer with its simulations, such as
            `lambda: NPE(prior).append_simulations(theta, x)`. It is called once; if the builder of
            its network holds a network, such as an embedding, once per member, so that this is a
            new one for each. Or a list of trainers, one per member, which may have different
            networks.
        members: How many; None: 5, or as many as there are trainers in the list.
        config: Training settings; with None, sbi's own keywords give sbi's numbers.
        loss_args: Arguments of the loss.
        n_jobs: Members at a time; None: what `joblib.parallel_config` says, or else 1, which is
            this process; -1: as many as there are cores.
        seed: Seed of the ensemble; None takes the config's, or that of the ensemble in
            `checkpoint`, or draws one from torch's global generator. The global random states are
            otherwise left alone.
        bootstrap: Draw the training rows of each member with replacement.
        resplit: Give each member a split into training and validation rows of its own.
        weights: "equal", or "validation": proportional to exp(-best validation loss).
        threads: Threads of torch per member.
        stacked: Whether to compute the steps of all members at once, which is faster where starting
            operations takes longer than arithmetic: with small networks, and on a GPU. True does so
            where possible; "auto" times both ways and stacks if that is faster. Losses and
            gradients are then those of single training up to float32 rounding, so that networks are
            equal to those of single training in the first steps, and as good later; members still
            have batches, stopping, best weights, schedule, files and loggers of their own, and
            leave the stack when they end. With `n_jobs` above 1, there are that many stacks. The
            summary says whether members were stacked, and why not where it was not possible.
        only: Train these members of the ensemble alone, for example each in a job of its own; a
            call without it then finds them in `checkpoint`.
        checkpoint: Directory of the ensemble, with a run directory per member. Members that are
            complete there are returned at once, and others continue.
        logging: `LoggingConfig` values or names of backends. Each member has curves of its own,
            in one group (wandb), as children of one run (MLflow), or in folders `member-0`, ...
            (tensorboard, jsonl).
        **what_train_takes: What `train()` of the trainer takes besides.

    Returns:
        The trained ensemble.

    Raises:
        ArgumentError: If arguments contradict each other, trainers are of different methods, have
            different simulations or are one and the same, or something cannot be sent to a process.
        SettingsError: If a number is out of range.
        NoSimulationsError: If a trainer has no simulations.
        DataError: If there is no room for the file of simulations.
        CheckpointError: If another ensemble trains in the directory.
        Exception: The error of the first member, if all have failed.

    Example:
        >>> from sbi.utils import BoxUniform
        >>> from sbi_ignite import NPE, TrainConfig
        >>> prior = BoxUniform(-torch.ones(2), torch.ones(2))
        >>> theta = prior.sample((100,))
        >>> x = theta + 0.1 * torch.randn(100, 2)
        >>> ensemble = train_ensemble(
        ...     lambda: NPE(prior, show_progress_bars=False).append_simulations(theta, x),
        ...     members=2,
        ...     config=TrainConfig(max_epochs=1),
        ...     seed=1,
        ... )
        >>> samples = ensemble.build_posterior().sample((10,), x=x[:1], show_progress_bars=False)
        >>> samples.shape, len(ensemble.summary.losses)
        (torch.Size([10, 2]), 2)
    """
    members = _number_of_members(make_trainer, members)
    chosen = _chosen(only, members)
    _check_values(weights, threads, resplit, seed)
    _check_stacked(stacked)
    arguments = {
        **what_train_takes,
        "train_config": config,
        "loss_args": loss_args,
        "checkpoint": checkpoint,
        "logging": logging,
    }
    fallback = int(torch.randint(2**31 - 1, ()).item()) if seed is None else seed

    def seed_of(first: Any) -> int:
        call = check_train_call(first, arguments)
        return _seed(call, seed, fallback, only is not None)

    made = make_trainers(make_trainer, members, chosen, seed_of)
    plan = _Plan(made.seed, bool(bootstrap), bool(resplit), weights, threads)
    return _train(
        made.trainers, arguments, plan, n_jobs, stacked, 0, members, only is None, made.ours
    )


def _train(
    trainers: Mapping[int, Any],
    arguments: Mapping[str, Any],
    plan: _Plan,
    n_jobs: int | None,
    stacked: Stacked,
    round_index: int,
    members: int | None = None,
    alone: bool = True,
    ours: bool = True,
    number: int | None = None,
) -> Ensemble:
    """Train members.

    Args:
        trainers: A trainer per number of a member; they have equal simulations.
        arguments: Arguments of `train()`, as the user passed them.
        plan: How members differ.
        n_jobs: Members at a time.
        stacked: Whether to train members stacked.
        round_index: How often they have been trained before.
        members: How many the ensemble has in all.
        alone: Whether no other process may train members of this ensemble.
        ours: Whether nobody else needs the trainers' tensors.
        number: Number of the ensemble in this process; None for a new one.
    """
    began = time.perf_counter()
    first = next(iter(trainers.values()))
    calls = {id(t): check_train_call(t, arguments) for t in trainers.values()}
    call = calls[id(first)]
    if call.settings.train.resume_training and round_index:
        round_index -= 1  # the last round goes on, with the seeds that it has
    workers = Workers.found(n_jobs, len(trainers))
    directory = _directory(call, number)
    method = type(first).__name__
    with (
        _held(directory, alone),
        grouped(
            loggers_of(call.settings),
            method,
            call.settings.to_dict(),
            directory is not None,
            _known(directory),
        ) as group,
        shared_folder() as folder,
    ):
        _record(directory, plan, method, members or len(trainers), group)
        if number is None:
            number = _count(call)
        tensors = simulations_of(first)
        if not workers.in_this_process:
            tensors = folder.share(tensors)
            for trainer in trainers.values() if ours else ():
                private(trainer).replace_simulations(tensors)
        tasks = [
            _task(index, trainer, call, arguments, plan, round_index, folder, group, directory)
            for index, trainer in trainers.items()
        ]
        outcomes: dict[int, Outcome] = {}
        wanted = private(first).shows_progress and not group.prints
        with progress_shown(folder.progress, len(tasks), wanted) as finished:
            for outcome in workers.outcomes(tasks, tensors, stacked):
                outcomes[outcome.index] = outcome
                finished(outcome)
        summary = _summary(outcomes, trainers, method, plan, workers, time.perf_counter() - began)
        group.summary = summary
        _report(outcomes, stacked)
        good = {i: outcomes[i] for i in trainers if outcomes[i].failure is None}
        if not good:
            failure: Any = outcomes[next(iter(trainers))].failure
            raise raised(failure)
        return Ensemble(
            plan,
            list(good),
            [_trained(trainers[index], outcome, tensors) for index, outcome in good.items()],
            [cloudpickle.loads(outcome.estimator or b"") for outcome in good.values()],
            summary,
            round_index + 1,
            number,
        )


# --- what is asked for


def _number_of_members(make_trainer: Any, members: Any) -> int:
    several = isinstance(make_trainer, list | tuple)
    if members is not None and (isinstance(members, bool) or not isinstance(members, int)):
        raise ArgumentError(f"members: expected a whole number, got {members!r}.")
    if several and members not in (None, len(make_trainer)):
        raise ArgumentError(
            f"members: expected the number of trainers, {len(make_trainer)}, or none at all, got "
            f"{members}."
        )
    members = len(make_trainer) if several else 5 if members is None else members
    if members < 1:
        raise SettingsError(f"members: expected at least 1, got {members}.")
    return members


def _chosen(only: Any, members: int) -> list[int]:
    chosen = range(members) if only is None else [only] if isinstance(only, int) else list(only)
    wrong = [k for k in chosen if isinstance(k, bool) or k not in range(members)]
    if wrong or not chosen:
        raise SettingsError(f"only: expected members from 0 to {members - 1}, got {only!r}.")
    return sorted(set(chosen))


def _check_values(weights: Any, threads: Any, resplit: bool, seed: Any) -> None:
    if weights not in ("equal", "validation"):
        raise SettingsError(f"weights: expected 'equal' or 'validation', got {weights!r}.")
    if weights == "validation" and resplit:
        raise ArgumentError(
            "weights='validation' compares losses of the same rows, and resplit=True gives each "
            "member others. Leave one of them out."
        )
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise SettingsError(f"threads: expected a whole number of at least 1, got {threads!r}.")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise SettingsError(f"seed: expected a whole number of at least 0, got {seed!r}.")


def _check_stacked(stacked: Any) -> None:
    if not (isinstance(stacked, bool) or stacked == "auto"):
        raise SettingsError(f"stacked: expected False, True or 'auto', got {stacked!r}.")


def _seed(call: Call, asked: int | None, fallback: int, alone: bool) -> int:
    """Return the seed of the ensemble: the call's, the config's, the directory's, or a new one."""
    configured = call.settings.train.seed
    origin = call.settings.origin("train.seed")
    if asked is not None and configured not in (None, asked) and origin.source == "call":
        raise ArgumentError(
            f"seed: expected one, got seed={asked} from train_ensemble(seed=...) and "
            f"seed={configured} from {origin}. Leave one of them out."
        )
    if asked is not None or configured is not None:
        return asked if asked is not None else int(configured or 0)
    found = _known(_directory(call), whole=True)
    if "seed" in found:
        return int(found["seed"])
    if alone:
        raise ArgumentError(
            "only: expected a seed beside it, because members that are trained one by one can "
            "belong to one ensemble only by its seed. Pass seed=..."
        )
    return fallback


_begun: dict[Path, int] = {}
"""How many ensembles of this process have begun below a directory from the environment."""


def _directory(call: Call, number: int | None = None) -> EnsembleDirectory | None:
    """Return the directory of an ensemble; None without checkpoints.

    One that is named in the call is used as it is. One from the environment or a file belongs to a
    whole script, whose ensembles get `ensemble`, `ensemble-1`, ... below it.

    Args:
        call: The call.
        number: Number of the ensemble in this process; None for a new one.
    """
    config = call.settings.checkpoint
    if config is None:
        return None
    path = Path(config.directory).absolute()
    if call.settings.origin("checkpoint.directory").source != "call":
        number = _begun.get(path, 0) if number is None else number
        path /= f"ensemble-{number}" if number else "ensemble"
    return EnsembleDirectory(path, config)


def _count(call: Call) -> int:
    """Count an ensemble that has begun, and return its number."""
    config = call.settings.checkpoint
    if config is None:
        return 0
    path = Path(config.directory).absolute()
    _begun[path] = _begun.get(path, 0) + 1
    return _begun[path] - 1


def _held(directory: EnsembleDirectory | None, alone: bool) -> Any:
    return contextlib.nullcontext() if directory is None else directory.held(alone)


def _known(directory: EnsembleDirectory | None, whole: bool = False) -> dict[str, Any]:
    """Return what a continued ensemble has logged to, or all that is known of it."""
    found = {} if directory is None else directory.read() or {}
    return found if whole else dict(found.get("logged_to", {}))


def _record(
    directory: EnsembleDirectory | None, plan: _Plan, method: str, members: int, group: Group
) -> None:
    if directory is not None:
        plain = {n: v for n, v in vars(plan).items() if n != "weighting"}
        directory.begin(
            {"method": method, "members": members, **plain, "logged_to": dict(group.logged_to)}
        )


# --- members


def _task(
    index: int,
    trainer: Any,
    call: Call,
    arguments: Mapping[str, Any],
    plan: _Plan,
    round_index: int,
    folder: SharedFolder,
    group: Group,
    directory: EnsembleDirectory | None,
) -> Task:
    seeds = member_seeds(
        plan.seed, index, round_index, bootstrap=plan.bootstrap, resplit=plan.resplit
    )
    own = {name: value for name, value in arguments.items() if value is not None}
    checkpoint = None if directory is None else directory.of_member(index)
    own |= {"checkpoint": checkpoint or False, "logging": group.of_member(index)}
    environment: dict[str, str | None] = {**passed_on(), **group.environment}
    if call.sbi_form:
        # TrainConfig would make it another form; a seed from outside would be that of all members.
        if call.settings.train.seed is not None:
            environment[_SEED] = str(seeds.train)
    else:
        own["train_config"] = own["train_config"].model_copy(update={"seed": seeds.train})
    tracker, log_folder = _tracker(trainer, index)
    return Task(
        index=index,
        trainer=pack(trainer),
        arguments=pack_arguments(own),
        seeds=seeds,
        threads=plan.threads,
        folder=folder,
        environment=environment,
        log_folder=log_folder,
        tracker=tracker,
        run_directory=None if checkpoint is None else Path(checkpoint.directory),
        started_by=(os.getpid(), platform.node()),
        prints=group.prints,
    )


def _tracker(trainer: Any, index: int) -> tuple[bytes | None, str | None]:
    """Return a user's tracker, pickled, or the folder in which a member has one of sbi's."""
    tracker = private(trainer).tracker
    if private(trainer).has_sbis_tracker:
        return None, str(Path(tracker.log_dir).absolute() / f"member-{index}")
    return pack_arguments({"tracker": tracker}), None


def _trained(template: Any, outcome: Outcome, tensors: Sequence[Tensor]) -> Any:
    """Return the trainer of a member after its training."""
    own = private(template)
    trainer = unpack(outcome.trainer or b"", tensors, own.tracker, own.prior)
    private(trainer).show_progress(own.shows_progress)
    return trainer


def _summary(
    outcomes: Mapping[int, Outcome],
    order: Sequence[int] | Mapping[int, Any],
    method: str,
    plan: _Plan,
    workers: Workers,
    seconds: float,
) -> EnsembleSummary:
    summaries = {i: outcomes[i].summary for i in order}
    weights = _weights(summaries, plan.weighting)
    members = []
    for index in order:
        outcome = outcomes[index]
        failure = outcome.failure or Failure("", "", "")
        members.append(
            MemberSummary(
                index=index,
                seed=outcome.seeds.train,
                summary=outcome.summary,
                weight=weights.get(index, 0.0),
                error=str(failure) if outcome.failure else "",
                advice=failure.advice,
                trace=failure.trace,
            )
        )
    return EnsembleSummary(
        method=method,
        members=tuple(members),
        seed=plan.seed,
        weighting=plan.weighting,
        seconds=seconds,
        n_jobs=workers.n_jobs,
        backend=workers.backend,
        stacked=_stacked(outcomes),
    )


def _stacked(outcomes: Mapping[int, Outcome]) -> str:
    """Return whether members were stacked and why, in words; "" if nobody asked for it."""
    found = [outcome.stacking for outcome in outcomes.values() if outcome.stacking is not None]
    ways = {True: "stacked", False: "one after the other"}
    return "; ".join(dict.fromkeys(f"{ways[chosen]} ({because})" for chosen, because in found))


def _weights(summaries: Mapping[int, TrainingSummary | None], weighting: str) -> dict[int, float]:
    """Return weights that add up to 1, by number of the member."""
    losses = {i: s.best_validation_loss for i, s in summaries.items() if s is not None}
    if weighting == "equal" or not all(map(math.isfinite, losses.values())):
        return {i: 1 / len(losses) for i in losses}
    lowest = min(losses.values())
    shares = {i: math.exp(lowest - loss) for i, loss in losses.items()}
    return {i: share / sum(shares.values()) for i, share in shares.items()}


# --- what the user is told


def _report(outcomes: Mapping[int, Outcome], stacked: Stacked) -> None:
    """Warn of failed members, of what members have warned of, and if none could be stacked."""
    failed = [(i, o.failure) for i, o in sorted(outcomes.items()) if o.failure is not None]
    if len(failed) < len(outcomes):
        for index, failure in failed:
            _warn(
                f"train_ensemble: member {index} has failed and is left out ({failure}). "
                f"{failure.advice}.",
                SbiIgniteWarning,
            )
    refused = {o.stacking[1] for o in outcomes.values() if o.stacking and not o.stacking[0]}
    if stacked is True and refused:
        _warn(
            "stacked=True: members were trained one after the other, with the results of "
            f"stacked=False, because {'; '.join(sorted(refused))}.",
            SbiIgniteWarning,
        )
    said: dict[tuple[bytes, str], list[int]] = {}
    for index, outcome in sorted(outcomes.items()):
        for warning in outcome.warnings:
            said.setdefault(warning, []).append(index)
    for (category, text), members in said.items():
        who = f"member{'s' * (len(members) > 1)} {', '.join(map(str, members))}"
        _warn(f"{who}: {text}", cloudpickle.loads(category))


def _warn(text: str, category: type[Warning]) -> None:
    """Warn at the user's line; where warnings are errors, print: networks are worth more."""
    try:
        warnings.warn(text, category, stacklevel=5)
    except Warning:
        print(f"{category.__name__}: {text}", file=sys.stderr)
