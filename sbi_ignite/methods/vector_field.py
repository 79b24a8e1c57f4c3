"""Flow matching and score matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from sbi_ignite.exceptions import SettingsError
from sbi_ignite.kernels.embedding import embedding_once, has_parameters
from sbi_ignite.methods.base import Loss, LossArgs, Method, TrainerView
from sbi_ignite.settings import EarlyStopping, Origin


class LossArgsVF(LossArgs):
    """Loss arguments of FMPE and NPSE.

    Example:
        >>> LossArgsVF(validation_times=20).ema_loss_decay
        0.1
    """

    ema_loss_decay: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Weight of the newest loss in the running averages that `inference.summary` "
        "and the stop rule of two standard deviations use.",
    )
    validation_times: Any = Field(
        default=10, description="Times at which every validation row is scored: number or tensor."
    )
    validation_times_nugget: float = Field(
        default=0.05, ge=0, description="Distance kept from both ends of the time interval."
    )
    calibration_kernel: Callable[..., Any] | None = Field(
        default=None,
        description="Weights losses by x, shape (batch, ...) -> (batch,) (Lueckmann et al. 2017).",
    )
    force_first_round_loss: bool = Field(
        default=False, description="Train without correction whatever the proposal was."
    )

    @override
    def _check(self, origins: Mapping[str, Origin]) -> None:
        times = self.validation_times
        if isinstance(times, Tensor):
            good = times.ndim == 1 and len(times) > 0 and times.is_floating_point()
            if not good or not bool(((times >= 0) & (times <= 1)).all()):
                raise _wrong(
                    "validation_times",
                    "a number of times, or a tensor of times between 0 and 1, shape (num_times,)",
                    f"a tensor of {times.dtype}, shape {tuple(times.shape)}"
                    + (f", from {times.min():g} to {times.max():g}" if times.numel() else ""),
                    origins,
                )
        elif isinstance(times, bool) or not isinstance(times, int) or times < 1:
            raise _wrong(
                "validation_times", "a positive number of times, or a tensor", repr(times), origins
            )
        elif self.validation_times_nugget >= 0.5:
            raise _wrong(
                "validation_times_nugget",
                "less than 0.5, half of the time interval",
                f"{self.validation_times_nugget:g}",
                origins,
            )


def _wrong(name: str, expected: str, got: str, origins: Mapping[str, Origin]) -> SettingsError:
    origin = origins.get(name, Origin("call", f"LossArgsVF({name}=...)"))
    return SettingsError(f"LossArgsVF.{name}: expected {expected}, got {got} from {origin}")


@dataclass(frozen=True)
class VectorFieldLoss:
    """Matching loss at random times for training, at fixed times for validation.

    Attributes:
        calibration_kernel: x of shape (batch, ...) to weights of shape (batch,).
        times: Times of the validation loss, shape (num_times,), where the batches are.
        embeds_once: Whether validation embeds every x once and not at every time, which may round
            otherwise.
    """

    calibration_kernel: Callable[[Tensor], Tensor]
    times: Tensor
    embeds_once: bool = False

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return losses at one random time per row, shape (batch,)."""
        theta, x = batch[0], batch[1]
        return self.calibration_kernel(x) * model.loss(theta, x, times=None)

    def validate(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return losses of every row at every time, shape (num_times * batch,)."""
        theta, x = batch[0], batch[1]
        size, num_times = len(theta), len(self.times)
        theta = theta.repeat(num_times, *[1] * (theta.ndim - 1))
        x = x.repeat(num_times, *[1] * (x.ndim - 1))
        times = self.times.repeat_interleave(size, dim=0)
        with self._embedding_once(model, size):
            losses = model.loss(theta, x, times=times)
        return self.calibration_kernel(x) * losses

    def _embedding_once(self, model: Any, num_rows: int) -> AbstractContextManager[None]:
        embedding = getattr(model, "embedding_net", None)
        if not self.embeds_once or not has_parameters(embedding):
            return nullcontext()
        return embedding_once(embedding, num_rows, in_blocks=True)


def _loss(trainer: TrainerView) -> Loss | None:
    """Return the loss of the first round; later ones need the trainer's own correction."""
    args = trainer.arguments
    if not (trainer.first_round or args.force_first_round_loss):
        return None
    times = args.times.to(trainer.device)
    return VectorFieldLoss(args.calibration_kernel, times, embeds_once=not trainer.as_sbi)


def _rows_met(keywords: Mapping[str, Any], first_round: bool) -> int | None:
    return None if keywords.get("calibration_kernel") else 1


def _repeats(keywords: Mapping[str, Any]) -> int:
    times = keywords.get("validation_times", LossArgsVF.model_fields["validation_times"].default)
    return max(1, len(times) if isinstance(times, Tensor) else int(times))


VECTOR_FIELD = Method(
    LossArgsVF,
    _loss,
    default_rule=EarlyStopping.two_standard_deviations(),
    rows_met=_rows_met,
    repeats=_repeats,
)
