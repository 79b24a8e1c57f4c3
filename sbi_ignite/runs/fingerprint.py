"""Fingerprints of networks, and what makes a training differ from the run in a directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import eq
from typing import Any

from torch import Tensor, nn

from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.runs.loss_record import loss_differences
from sbi_ignite.settings.checkpoint import START_ANEW
from sbi_ignite.settings.schedule import same_course

BUDGETS = frozenset(
    {
        "max_epochs",
        "max_time",
        "device",
        "compile",
        "process_timeout",
        "resume_training",
        "retrain_from_scratch",
        "show_train_summary",
    }
)
"""Fields of TrainConfig that may change between two starts of a run."""

LOSS = "loss"
"""Key of the manifest that holds what `describe_loss` returned, where a user gave the loss."""

INIT_FROM = "init_from"
"""Key of the manifest that holds what the first weights came from; None if from nowhere."""

VALIDATION_DATA = "validation_data"
"""Key of the manifest that holds the fingerprint of validation data given by the user."""

MODULES = "modules"
"""Key of the manifest that holds what `describe_modules` returned, where a user gave modules."""

DATASET = "dataset"
"""Key of the manifest that holds what `describe_loss` returned of data made on the fly."""

FUNCTIONS = {
    LOSS: "loss function",
    "calibration_kernel": "calibration kernel",
    MODULES: "network",
    DATASET: "dataset",
}
"""Keys of the manifest that hold what `describe_loss` returned, and what they are of."""

OBSERVED = ("optimizer", "loader")
"""Origins of what no setting decides, such as the rate of a callable optimizer."""

_FORMS = (
    " Calls with sbi's keywords alone have sbi_compat=True, calls with a TrainConfig have False "
    "unless it says otherwise."
)
_ADVICE = (
    f"Start with {START_ANEW} or SBI_IGNITE_CHECKPOINT__RESUME=never, which moves the old run's "
    "files aside, or in another directory."
)


def fingerprint_network(network: nn.Module) -> dict[str, Any]:
    """Return digests of a network's structure, of its options and of its frozen weights.

    The values of weights that are trained are left out.

    Args:
        network: Any module.
    """
    modules = [f"{name}: {_class_name(module)}" for name, module in network.named_modules()]
    tensors = [
        f"{name}: {tensor.dtype} {tuple(tensor.shape)}"
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, Tensor)
    ]
    options = [f"{name}: {_options(module)}" for name, module in network.named_modules()]
    frozen = [p.detach() for p in network.parameters() if not p.requires_grad]
    return {
        "class": _class_name(network),
        "parameters": sum(p.numel() for p in network.parameters()),
        "digest": _digest([*modules, "", *tensors]),
        "options": _digest(options),
        "frozen": _digest(str(entry["digest"]) for entry in fingerprint_data(frozen)),
    }


def _options(module: nn.Module) -> str:
    """Return the options that torch prints of its own modules, such as the rate of a dropout."""
    own = type(module).extra_repr.__module__.startswith("torch.nn.")
    return module.extra_repr() if own else ""


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say how a training differs from the run that a manifest describes.

    Budgets (epochs, time, patience, logging, checkpoints) may differ; what changes the numbers may
    not. Keys that one of the two lacks are not compared.

    Args:
        saved: Manifest in the run directory.
        now: Manifest of the training that is about to begin.

    Returns:
        Sentences, each with advice on what to do; none if the run may be continued.
    """
    found = [
        *_simple(saved, now),
        *_settings(saved, now),
        *_objects(saved, now),
        *_network(saved, now),
        *_loss(saved, now),
        *_initial_weights(saved, now),
    ]
    data = [
        *_data(saved.get("data"), now.get("data"), "data"),
        *_data(saved.get(VALIDATION_DATA), now.get(VALIDATION_DATA), "validation data"),
    ]
    return [f"{sentence} {_ADVICE}" for sentence in found] + data


def _simple(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, text in (("method", "The method differs"), ("seed", "The seed differs")):
        if key in saved and key in now and saved[key] != now[key]:
            yield f"{text}: the run has {saved[key]}, now it is {now[key]}."


def _settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before = saved.get("settings", {}).get("train", {})
    after = now.get("settings", {}).get("train", {})
    for name in before.keys() & after.keys() - BUDGETS - {"seed"}:
        if not _is_same(name, before[name], after[name]):
            origin = after[name].get("where") or after[name].get("origin", "")
            yield (
                f"The setting {name} differs: the run has {before[name]['value']!r}, now it is "
                f"{after[name]['value']!r}{f' ({origin})' if origin else ''}."
                f"{_FORMS if name == 'sbi_compat' else ''}"
            )


def _is_same(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether two entries of a setting are the same, or cannot be compared."""
    if after.get("origin") in OBSERVED and before.get("origin") not in OBSERVED:
        return True  # an older run noted what was asked for, not what ran
    same = same_course if name == "lr_schedule" else eq
    return same(before["value"], after["value"])


def _objects(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Compare the options of the user's optimizer and scheduler."""
    for kind in ("optimizer", "scheduler"):
        before, after = saved.get(kind), now.get(kind)
        if not before or not after:
            continue
        # One is a list of parameter groups.
        groups = zip(*(v if isinstance(v, list) else [v] for v in (before, after)), strict=False)
        for i, (old, new) in enumerate(groups):
            where = f" of parameter group {i}" if isinstance(after, list) and len(after) > 1 else ""
            for name in old.keys() & new.keys():
                if old[name] != new[name]:
                    yield (
                        f"The {kind}'s {name.lstrip('_')}{where} differs: the run has "
                        f"{old[name]!r}, now it is {new[name]!r}."
                    )


def _network(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before, after = saved.get("network"), now.get("network")
    if not before or not after:
        return
    if before["digest"] == after["digest"]:
        # Versions of torch print options differently.
        versions = [manifest.get("versions", {}).get("torch") for manifest in (saved, now)]
        if versions[0] == versions[1] and before.get("options") not in (None, after["options"]):
            yield (
                "The network differs: its modules have other options than in the run, such as "
                "the rate of a dropout or the slope of an activation."
            )
        return
    shown = [f"{n['class']} with {n['parameters']} parameters" for n in (before, after)]
    if shown[0] == shown[1]:
        shown[1] = "another structure of the same size"
    yield f"The network differs: the run has {shown[0]}, now it is {shown[1]}."


def _loss(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, what in FUNCTIONS.items():
        if key in saved and key in now:
            yield from loss_differences(saved[key], now[key], what)
    before, after = saved.get("loss_arguments") or {}, now.get("loss_arguments") or {}
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            yield (
                f"The loss argument {name} differs: the run has {before[name]!r}, now it is "
                f"{after[name]!r}."
            )


def _initial_weights(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Compare what the first weights came from; a later start need not say it again."""
    before, after = saved.get(INIT_FROM), now.get(INIT_FROM)
    if INIT_FROM not in saved or after is None:
        return
    if before is None:
        yield f"The first weights differ: the run had no init_from, now it is {_named(after)}."
    elif before["weights"] != after["weights"]:
        yield (
            f"The first weights differ: the run began with those of {_named(before)}, now "
            f"init_from gives others, of {_named(after)}. To continue the run with the weights "
            "that it has, leave init_from out."
        )


def _named(source: Mapping[str, Any]) -> str:
    return f"{source['source']} (weights {source['weights'][:8]})"


def _data(
    before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]] | None, name: str
) -> list[str]:
    if not before or not after or before == after:
        return []
    kinds = [[(t["dtype"], t["shape"]) for t in tensors] for tensors in (before, after)]
    if kinds[0] == kinds[1]:
        numbers = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        what = f"same shapes, other values in tensor {', '.join(map(str, numbers))}"
    else:
        what = f"the run has {_shapes(before)}, now it is {_shapes(after)}"
    return [
        f"The {name} differ: {what}. If the script simulates anew without a seed, seed it "
        f"(torch.manual_seed) or save the simulations. {_ADVICE}"
    ]


def _shapes(tensors: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{tuple(t['shape'])} {t['dtype'].removeprefix('torch.')}" for t in tensors)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
