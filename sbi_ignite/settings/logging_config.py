"""Settings for logging: a backend and the fields that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.errors import refuse_foreign
from sbi_ignite.settings.field_types import Directory, OrNone, PositiveInt, Tags, Text, choice
from sbi_ignite.settings.origin import Origin

__all__ = ["Backend", "LoggingConfig"]

Backend = Literal["stdout", "tensorboard", "wandb", "mlflow", "jsonl", "memory", "none"]
_Mode = Literal["online", "offline", "shared", "disabled"]
_MODES = ("online", "offline", "shared", "disabled")

# A backend is the page of that name in loggers/.
_TAKES: Mapping[str, tuple[str, ...]] = {
    "stdout": (),
    "tensorboard": ("log_dir",),
    "wandb": ("project", "entity", "mode"),
    "mlflow": ("experiment_name", "tracking_uri"),
    "jsonl": ("log_dir",),
    "memory": (),
    "none": (),
}
_ALL_TAKE = ("run_name", "tags", "every_n_iterations")


class LoggingConfig(Settings):
    """Where the numbers of a training go: one backend and the fields that it takes.

    `run_name`, `tags` and `every_n_iterations` suit every backend, `log_dir` suits tensorboard and
    jsonl, `project`, `entity` and `mode` suit wandb, `experiment_name` and `tracking_uri` suit
    mlflow. Keys and tokens are not fields: the backends read them from their usual places.

    Several trainings may share a `log_dir`, even at the same time. The first writes to `log_dir`
    itself (tensorboard with a `run_name`: to the folder `log_dir/RUN_NAME`); every other fresh one
    gets a folder of its own below, named `RUN_NAME` or after the method and the time. A resumed
    training and later rounds of the same inference keep writing where they wrote before. Without a
    `log_dir`, files go to `logs` in the run directory, or else to `sbi-logs/RUN_NAME`.

    One training may log to several backends, and to one backend at several places; the same place
    twice is refused.

    Raises:
        SettingsError: If a value is wrong or the backend does not take a field.

    Example:
        >>> LoggingConfig(backend="wandb", project="exp")
        LoggingConfig(backend='wandb', project='exp')
    """

    leading: ClassVar[tuple[str, ...]] = ("backend",)
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (*own, *_ALL_TAKE) for name, own in _TAKES.items()
    }
    """The fields that each backend takes."""

    backend: Annotated[Backend, choice(*_TAKES)] = Field(
        default="stdout", description="What receives the numbers."
    )
    log_dir: Annotated[Directory | None, OrNone] = Field(
        default=None, description="The directory that tensorboard or jsonl writes to, or below."
    )
    project: Annotated[Text | None, OrNone] = Field(default=None, description="The wandb project.")
    entity: Annotated[Text | None, OrNone] = Field(
        default=None, description="The wandb user or team."
    )
    mode: Annotated[Annotated[_Mode, choice(*_MODES)] | None, OrNone] = Field(
        default=None, description="The wandb mode: 'online', 'offline', 'shared' or 'disabled'."
    )
    experiment_name: Annotated[Text | None, OrNone] = Field(
        default=None, description="The mlflow experiment."
    )
    tracking_uri: Annotated[Text | None, OrNone] = Field(
        default=None, description="The address of the mlflow server or store."
    )
    run_name: Annotated[Text | None, OrNone] = Field(
        default=None, description="The name of the run."
    )
    tags: Annotated[Tags | None, OrNone] = Field(
        default=None, description="Names, or names with values, that mark the run."
    )
    every_n_iterations: Annotated[PositiveInt | None, OrNone] = Field(
        default=None, description="Optimizer steps between two loggings; None: once an epoch."
    )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that this backend takes, `backend` first."""
        return ("backend", *self.takes[self.backend])

    @override
    def _check(self, origins: Mapping[str, Origin]) -> None:
        refuse_foreign(self, "backend", self.takes, origins)
        if self.run_name and "log_dir" in self.fields and _leaves_its_folder(self.run_name):
            origin = origins.get("run_name", Origin("call", "LoggingConfig(run_name=...)"))
            raise SettingsError(
                f"LoggingConfig.run_name: backend {self.backend!r} names a folder below log_dir "
                f"with it, expected a name without '..' that does not begin at the root, got "
                f"{self.run_name!r} from {origin}. Name another place by log_dir."
            )

    if TYPE_CHECKING:  # `backend` may be passed by position, `log_dir` may be a string

        def __init__(
            self,
            backend: Backend = "stdout",
            *,
            log_dir: str | PathLike[str] | None = None,
            project: str | None = None,
            entity: str | None = None,
            mode: _Mode | None = None,
            experiment_name: str | None = None,
            tracking_uri: str | None = None,
            run_name: str | None = None,
            tags: Sequence[str] | Mapping[str, str] | None = None,
            every_n_iterations: int | None = None,
        ) -> None: ...


def _leaves_its_folder(name: str) -> bool:
    path = Path(name)
    return path.is_absolute() or ".." in path.parts
