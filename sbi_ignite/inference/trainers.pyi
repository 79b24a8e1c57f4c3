"""Signatures of every trainer's `train()`; written by `python -m tests.typing.stubs`."""

# The overrides take more than sbi's methods do, which a type checker cannot know is meant.
# pyright: reportIncompatibleMethodOverride=false

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import sbi.inference as sbi_inference
from sbi.neural_nets.estimators import (
    ConditionalDensityEstimator,
    ConditionalVectorFieldEstimator,
    MixedDensityEstimator,
    UnconditionalDensityEstimator,
)
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor

from sbi_ignite.methods.marginal import LossArgsMarginal
from sbi_ignite.methods.nle import LossArgsNLE
from sbi_ignite.methods.npe import LossArgsNPE
from sbi_ignite.methods.nre import LossArgsBNRE, LossArgsNRE, LossArgsNRE_A, LossArgsNRE_C
from sbi_ignite.methods.vector_field import LossArgsVF
from sbi_ignite.settings import CheckpointConfig, EarlyStopping, TrainConfig
from sbi_ignite.summary import TrainingSummary

class IgniteTrainer:
    training_summary: TrainingSummary | None

class IgniteLoop(IgniteTrainer): ...

class NPE_A(IgniteLoop, sbi_inference.NPE_A):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        calibration_kernel: Callable[..., Any] | None = ...,
        resume_training: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable[..., Any] | None = None,
        resume_training: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...

class NPE_B(IgniteLoop, sbi_inference.NPE_B):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        calibration_kernel: Callable[..., Any] | None = ...,
        resume_training: bool = ...,
        force_first_round_loss: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable[..., Any] | None = None,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...

class NPE_C(IgniteLoop, sbi_inference.NPE_C):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        *,
        num_atoms: int = ...,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        calibration_kernel: Callable[..., Any] | None = ...,
        resume_training: bool = ...,
        force_first_round_loss: bool = ...,
        discard_prior_samples: bool = ...,
        use_combined_loss: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...
    @overload
    def train(
        self,
        num_atoms: int = 10,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable[..., Any] | None = None,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        use_combined_loss: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...

class MNPE(IgniteLoop, sbi_inference.MNPE):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> MixedDensityEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNPE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> MixedDensityEstimator: ...

class NLE_A(IgniteLoop, sbi_inference.NLE_A):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNLE | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNLE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalDensityEstimator: ...

class MNLE(IgniteLoop, sbi_inference.MNLE):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNLE | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> MixedDensityEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNLE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> MixedDensityEstimator: ...

class NRE_A(IgniteLoop, sbi_inference.NRE_A):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNRE_A | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        loss_kwargs: Any | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        loss_kwargs: Any | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNRE_A | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...

class NRE_B(IgniteLoop, sbi_inference.NRE_B):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNRE | None = None,
        *,
        num_atoms: int = ...,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...
    @overload
    def train(
        self,
        num_atoms: int = 10,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNRE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...

class NRE_C(IgniteLoop, sbi_inference.NRE_C):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNRE_C | None = None,
        *,
        num_classes: int = ...,
        gamma: float = ...,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...
    @overload
    def train(
        self,
        num_classes: int = 5,
        gamma: float = 1.0,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsNRE_C | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...

class BNRE(IgniteLoop, sbi_inference.BNRE):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsBNRE | None = None,
        *,
        regularization_strength: float = ...,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        resume_training: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...
    @overload
    def train(
        self,
        regularization_strength: float = 100.0,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        resume_training: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsBNRE | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> RatioEstimator: ...

class FMPE(IgniteLoop, sbi_inference.FMPE):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsVF | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        calibration_kernel: Callable[..., Any] | None = ...,
        ema_loss_decay: float = ...,
        validation_times: Tensor | int = ...,
        validation_times_nugget: float = ...,
        resume_training: bool = ...,
        force_first_round_loss: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalVectorFieldEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable[..., Any] | None = None,
        ema_loss_decay: float = 0.1,
        validation_times: Tensor | int = 10,
        validation_times_nugget: float = 0.05,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsVF | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalVectorFieldEstimator: ...

class NPSE(IgniteLoop, sbi_inference.NPSE):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsVF | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        calibration_kernel: Callable[..., Any] | None = ...,
        ema_loss_decay: float = ...,
        validation_times: Tensor | int = ...,
        validation_times_nugget: float = ...,
        resume_training: bool = ...,
        force_first_round_loss: bool = ...,
        discard_prior_samples: bool = ...,
        retrain_from_scratch: bool = ...,
        show_train_summary: bool = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalVectorFieldEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        calibration_kernel: Callable[..., Any] | None = None,
        ema_loss_decay: float = 0.1,
        validation_times: Tensor | int = 10,
        validation_times_nugget: float = 0.05,
        resume_training: bool = False,
        force_first_round_loss: bool = False,
        discard_prior_samples: bool = False,
        retrain_from_scratch: bool = False,
        show_train_summary: bool = False,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsVF | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> ConditionalVectorFieldEstimator: ...

class MarginalTrainer(IgniteTrainer, sbi_inference.MarginalTrainer):
    @overload
    def train(
        self,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsMarginal | None = None,
        *,
        training_batch_size: int = ...,
        learning_rate: float = ...,
        validation_fraction: float = ...,
        stop_after_epochs: int = ...,
        max_num_epochs: int = ...,
        clip_max_norm: float | None = ...,
        dataloader_kwargs: dict[str, Any] | None = ...,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> UnconditionalDensityEstimator: ...
    @overload
    def train(
        self,
        training_batch_size: int = 200,
        learning_rate: float = 0.0005,
        validation_fraction: float = 0.1,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 2147483647,
        clip_max_norm: float | None = 5.0,
        dataloader_kwargs: dict[str, Any] | None = None,
        *,
        train_config: TrainConfig | None = None,
        loss_args: LossArgsMarginal | None = None,
        exclude_invalid_x: bool | None = None,
        logging: Any = None,
        early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
        checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None,
        callbacks: Any = (),
    ) -> UnconditionalDensityEstimator: ...

class NPE_PFN(sbi_inference.NPE_PFN):
    def train(self) -> None: ...

def refuse_arguments(trainer: Any, args: Any, kwargs: Any) -> None: ...

NPE = NPE_C
NLE = NLE_A
NRE = NRE_B

__all__ = [
    "BNRE",
    "FMPE",
    "MNLE",
    "MNPE",
    "NLE",
    "NLE_A",
    "NPE",
    "NPE_A",
    "NPE_B",
    "NPE_C",
    "NPE_PFN",
    "NPSE",
    "NRE",
    "NRE_A",
    "NRE_B",
    "NRE_C",
    "MarginalTrainer",
]
