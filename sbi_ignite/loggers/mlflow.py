"""The backend for MLflow.

ignite's logger uses MLflow's global active run, which may be the user's, and a dead server blocks
it for minutes; this one uses the client directly, with a run of its own. It is meant to live in a
backend process.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sbi_ignite.loggers.base import (
    Backend,
    EpochFigure,
    EpochRow,
    RunInfo,
    new_run_name,
    origins,
    parameters,
    results,
    run_record,
    status_of,
    warm_up_figures,
)
from sbi_ignite.loggers.clock import now
from sbi_ignite.loggers.locks import alone

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary

_CALL = re.compile(r"call-(\d+)\.")
"""How parameters of later rounds and calls begin."""

ID_TAG = "sbi_ignite.id"
"""The tag by which a run is found again; MLflow chooses its own run ids."""

_LOGGED_TAG = "sbi_ignite.parameters"
"""The tag of a run to which a call has logged all the parameters that it had."""

_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    # Without them the client reports usage to the makers and traces threads of its own.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_LONGEST_PARAMETER = 6000
_PARAMETERS_A_CALL = 100


class Mlflow(Backend):
    """Logs to a run of its own; every call can be repeated without harm.

    The run that `MLFLOW_RUN_ID` names is taken unless another training has it. Where it is not
    taken, or the user's process has an active run, the run is a child of that one.

    Args:
        experiment_name: The experiment, made if it is missing; None: that of the run which the
            environment names or the user's process has, `MLFLOW_EXPERIMENT_ID`,
            `MLFLOW_EXPERIMENT_NAME`, or MLflow's "Default".
        tracking_uri: Server or store; None: what the user's process has set, `MLFLOW_TRACKING_URI`,
            or MLflow's default.
        default_tracking_uri: What the user's process has set.
        users_run: `run_id` and `experiment_id` of the active run of the user's process.
        script: The user's script, named as the run's source.
        run_name: See `Backend`, likewise the others.
        tags: Become the run's tags.
        every_n_iterations: Steps between two values of the iteration metrics.
    """

    name: str = "mlflow"
    package = "mlflow"
    shows_figures = True
    in_own_process = True

    @classmethod
    def place(
        cls, fields: Mapping[str, Any], run_directory: str | os.PathLike[str] | None
    ) -> tuple[tuple[Hashable, ...], str, str]:
        """Return the run's store, experiment and name."""
        found = (
            fields["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI"),
            fields["experiment_name"] or os.environ.get("MLFLOW_EXPERIMENT_NAME"),
            fields["run_name"],
        )
        return found, cls.name, "another experiment_name, tracking_uri or run_name"

    def __init__(
        self,
        *,
        experiment_name: str | None = None,
        tracking_uri: str | None = None,
        default_tracking_uri: str | None = None,
        users_run: Mapping[str, str] | None = None,
        script: str = "python",
        run_name: str | None = None,
        tags: Any = None,
        every_n_iterations: int | None = None,
    ) -> None:
        super().__init__(run_name=run_name, tags=tags, every_n_iterations=every_n_iterations)
        self._experiment_name, self._script = experiment_name, script
        self._tracking_uri = tracking_uri or default_tracking_uri
        environment = os.environ.get("MLFLOW_TRACKING_URI")
        self.local = is_local(self._tracking_uri or environment or "")
        # Ids belong to the store that the environment, or the user's process, names.
        self._ids_count = _agree(tracking_uri, environment)
        theirs = _agree(tracking_uri, default_tracking_uri)
        self._users_run = dict(users_run or {}) if theirs else {}
        self._info = RunInfo()
        self._client: Any = None
        self._run_id = ""
        self._have: dict[str, set[int]] = {}
        self._refused: Exception | None = None
        self._began = self._ended = 0

    def worth_retrying(self, error: Exception) -> bool:
        """Say yes, since a server may come back, unless the request itself is wrong."""
        from requests import RequestException

        code = getattr(error, "get_http_status_code", lambda: 0)()
        return isinstance(error, ConnectionError | TimeoutError | RequestException) or code >= 500

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Make or find the run, log the parameters that it does not have, attach `run.json`."""
        self._info = info
        self._client = self._client or self._connect()
        given = self._given()
        # Earlier rounds are in the run that they were logged to, and nowhere else.
        stays = identity.get("continued") and info.first_step
        run = (
            (None if stays else self._adopt(given, identity["id"]))
            or self._find(identity["id"], identity.get("run_id", ""))
            or self._create(identity["id"], given)
        )
        self._run_id, self._began = run.info.run_id, run.info.start_time or 0
        self._client.update_run(self._run_id, status="RUNNING", name=self.run_name)
        known = {f"origin.{name}": value for name, value in origins(info).items()}
        have, is_later = run.data.params, _LOGGED_TAG in run.data.tags
        if not is_later:
            self._log_parameters({**parameters(info), **known}, have=have)
        self._log_changes(parameters(info), known if is_later else {}, have)
        if not is_later:
            self._client.set_tag(self._run_id, _LOGGED_TAG, "yes")
        self._attach(self._log_record)
        if identity.get("continued"):
            names = ("training_loss", "iteration_loss")
            self._have = {name: self._steps(name) for name in names}
        warm_up_figures()

    def state_dict(self) -> dict[str, Any]:
        """Return MLflow's id of the run."""
        return {"run_id": self._run_id}

    def log_epoch(self, row: EpochRow) -> None:
        """Log the numbers of an epoch, all in one call."""
        if row.step not in self._have.get("training_loss", ()):
            self._log_metrics(row.values, row.step, row.time)

    def log_figure(self, figure: EpochFigure) -> None:
        """Attach it as `figures/NAME-epoch-STEP.png`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{figure.file_name}-epoch-{figure.step:06d}.png"
            path.write_bytes(figure.png())
            self._attach(lambda: self._client.log_artifact(self._run_id, str(path), "figures"))

    def log_iteration(
        self, iteration: int, values: Mapping[str, float], seconds: float | None = None
    ) -> None:
        """Log the numbers of an iteration, as of a time in seconds since 1970."""
        if iteration not in self._have.get("iteration_loss", ()):
            self._log_metrics(values, iteration, seconds or now())

    def finish(self, summary: TrainingSummary) -> None:
        """Log results and figure and mark the run as finished."""
        found = results(summary, self._info.first_step)
        numbers = {n: v for n, v in found.items() if type(v) in (int, float)}
        # Epochs have the best loss already.
        own = {n: v for n, v in numbers.items() if not n.endswith("_loss")}
        tags = {n: str(v) for n, v in found.items() if n not in numbers}
        tags["status"] = status_of(summary)
        step = self._info.first_step + summary.epochs_trained
        self._log_metrics(own, step, self._end_time() / 1000, tags)
        figure = summary.plot()
        self._attach(lambda: self._client.log_figure(self._run_id, figure, "loss_curve.png"))
        self._client.set_terminated(self._run_id, "FINISHED", self._end_time())
        if self._refused is not None:
            raise self._refused

    def fail(self, status: str, message: str) -> None:
        """Note what happened and mark the run as failed or killed."""
        self._client.set_tag(self._run_id, "error", message[:5000])
        self._client.set_terminated(self._run_id, status.upper(), self._end_time())

    def _end_time(self) -> int:
        """Return the end in milliseconds, never before the start, and the same value each time."""
        self._ended = self._ended or max(int(now() * 1000), self._began)
        return self._ended

    def _connect(self) -> Any:
        """Return a client whose waits are bounded."""
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        import logging

        logging.disable(logging.ERROR)
        from mlflow import MlflowClient, get_tracking_uri

        with self._alone(self._tracking_uri or get_tracking_uri()):
            return MlflowClient(self._tracking_uri)

    @contextmanager
    def _alone(self, tracking_uri: str) -> Iterator[None]:
        """Keep other processes out while MLflow makes or migrates the tables of a local store.

        Two processes doing so at the same time ruin the store; a server does it when it starts.
        """
        if not is_local(tracking_uri):
            yield
            return
        with alone(place_of(tracking_uri), self.still_moving):
            yield

    def _given(self) -> Any:
        """Return the run that the environment names, None without one.

        The user's active run takes precedence, and MLflow itself uses a given run only once.
        """
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if not run_id or self._users_run or not self._ids_count:
            return None
        run = self._existing(run_id)
        if run is None:
            self.say(
                f"mlflow: MLFLOW_RUN_ID names the run {run_id}, which does not exist; logging to "
                "a new one"
            )
        return run

    def _existing(self, run_id: str) -> Any:
        """Return a run, None if the store has none of this id or it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.get_http_status_code() not in (400, 404):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _adopt(self, given: Any, identifier: str) -> Any:
        """Return the given run with our tag, None if it is another training's or elsewhere."""
        if given is None or self._wanted_elsewhere(given.info.experiment_id):
            return None
        run_id = given.info.run_id
        with alone(f"mlflow {run_id}"):
            given = self._client.get_run(run_id)
            owner = given.data.tags.get(ID_TAG)
            if owner is None and "training_loss" not in given.data.metrics:
                for name, value in {**self.tags, **self._marks(identifier)}.items():
                    self._client.set_tag(run_id, name, value)
                owner = identifier
        return given if owner == identifier else None

    def _wanted_elsewhere(self, experiment_id: str) -> bool:
        """Say whether the call names another experiment."""
        return self._experiment_name is not None and self._experiment_id() != experiment_id

    def _marks(self, identifier: str) -> dict[str, str]:
        return {ID_TAG: identifier, "method": self._info.method}

    def _experiment_id(self, default: str = "") -> str:
        if self._experiment_name is None and default:
            return default
        from_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if self._experiment_name is None and from_id and self._ids_count:
            return from_id
        name = self._experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        try:
            return self._client.create_experiment(name)
        except Exception:  # another process was quicker
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return experiment.experiment_id

    def _find(self, identifier: str, run_id: str) -> Any:
        """Return the run of this training; also that of a call that seemed to have failed."""
        run = self._existing(run_id) if run_id else None
        if run is not None:
            return run
        query = f"tags.`{ID_TAG}` = '{identifier}'"
        experiment = self._experiment_id(self._users_run.get("experiment_id", ""))
        runs = self._client.search_runs([experiment], query, max_results=1)
        return runs[0] if runs else None

    def _create(self, identifier: str, given: Any) -> Any:
        """Make a run, as a child of the user's or of the one that the environment names."""
        from mlflow.tracking.context.system_environment_context import SystemEnvironmentContext
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        parent = self._users_run or _names_of(given)
        context = SystemEnvironmentContext()
        tags = {
            "mlflow.source.name": self._script,
            "mlflow.source.type": "LOCAL",
            "mlflow.user": os.environ.get("USER", ""),
            **(context.tags() if context.in_context() else {}),
            **({MLFLOW_PARENT_RUN_ID: parent["run_id"]} if parent else {}),
            **self.tags,
            **self._marks(identifier),
        }
        name = self.run_name or new_run_name(self._info.method)
        experiment, start = self._experiment_id(parent.get("experiment_id", "")), int(now() * 1000)
        return self._client.create_run(experiment, start, tags=tags, run_name=name)

    def _log_parameters(self, values: Mapping[str, Any], have: Iterable[str]) -> None:
        """Log what the run does not have: parameters cannot change."""
        from mlflow.entities import Param

        present = set(have)
        new = [
            Param(name, str(value)[:_LONGEST_PARAMETER])
            for name, value in values.items()
            if name not in present and value is not None
        ]
        for i in range(0, len(new), _PARAMETERS_A_CALL):
            self._client.log_batch(self._run_id, params=new[i : i + _PARAMETERS_A_CALL])

    def _log_changes(
        self, values: Mapping[str, Any], known: Mapping[str, str], have: Mapping[str, str]
    ) -> None:
        """Log what a later round or call does otherwise, beside parameters that cannot change.

        Args:
            values: Settings and manifest.
            known: Where settings came from, if the first call has logged all it had; what the run
                lacks was not set then.
            have: The run's parameters.
        """
        calls = sorted({int(found[1]) for name in have if (found := _CALL.match(name))})
        latest = dict(have)
        for number in calls:
            begin = f"call-{number}."
            latest.update({n[len(begin) :]: v for n, v in have.items() if n.startswith(begin)})
        changed = {
            name: value
            for name, value in values.items()
            if name in latest and str(value)[:_LONGEST_PARAMETER] != latest[name]
        }
        if known:
            new = {n: v for n, v in values.items() if n not in latest and v is not None}
            theirs = {n: v for n, v in known.items() if n.removeprefix("origin.") in new}
            changed = {**changed, **new, **theirs}
        number = 1 + max(calls, default=1)
        self._log_parameters({f"call-{number}.{n}": str(v) for n, v in changed.items()}, have=())

    def _log_metrics(
        self,
        values: Mapping[str, float],
        step: int,
        seconds: float,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, RunTag

        # MLflow keeps a value that is sent again with the same timestamp only once.
        milliseconds = int(seconds * 1000)
        metrics = [Metric(n, float(value), milliseconds, step) for n, value in values.items()]
        pairs = [RunTag(name, value) for name, value in (tags or {}).items()]
        self._client.log_batch(self._run_id, metrics=metrics, tags=pairs)

    def _attach(self, upload: Callable[[], None]) -> None:
        """Attach a file; where files cannot be stored, the numbers still can."""
        try:
            upload()
        except Exception as error:
            if self.worth_retrying(error):
                raise
            self._refused = error

    def _log_record(self) -> None:
        """Attach `run.json`, early, so that runs which never finish have it too."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            path.write_text(json.dumps(run_record(self._info), indent=2, default=str) + "\n")
            self._client.log_artifact(self._run_id, str(path))

    def _steps(self, metric: str) -> set[int]:
        """Return the steps at which the run has a value."""
        return {m.step for m in self._client.get_metric_history(self._run_id, metric)}


def is_local(tracking_uri: str) -> bool:
    """Say whether a store is a file or folder of this machine; "" is MLflow's default, a file."""
    scheme = urlsplit(tracking_uri).scheme
    if tracking_uri.startswith("databricks"):  # a name without a scheme
        return False
    # A single letter is a Windows drive.
    return scheme in ("", "file", "sqlite") or len(scheme) == 1


def place_of(tracking_uri: str) -> str:
    """Return where a local store is, however it is written; otherwise the address."""
    if not is_local(tracking_uri):
        return tracking_uri.rstrip("/")
    path = tracking_uri.removeprefix("sqlite:///").removeprefix("file://")
    return str(Path(path).absolute())


def _agree(called: str | None, said: str | None) -> bool:
    """Say whether the call leaves the store open, or names the same one."""
    return not called or not said or same_store(called, said)


def same_store(one: str, other: str) -> bool:
    """Say whether two addresses refer to the same store."""
    return place_of(one) == place_of(other)


def _names_of(run: Any) -> dict[str, str]:
    """Return the ids of a run and its experiment, nothing for None."""
    if run is None:
        return {}
    return {"run_id": run.info.run_id, "experiment_id": run.info.experiment_id}
