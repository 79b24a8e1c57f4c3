"""What, besides data and settings, determines the last bits of a training's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from sbi_ignite.processor import about_processor

_WORDS = {
    "world_size": "number of processes",
    "processor.model": "processor",
    "processor.capability": "vector instructions",
}


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Return what two trainings must share, besides versions, to agree bit for bit.

    Args:
        device: Where the network is; None for the CPU.

    Returns:
        Plain data: the number of threads, the device, the processor and torch's flags.

    Example:
        >>> sorted(describe_machine())
        ['device', 'flags', 'processor', 'threads']
    """
    return {
        "threads": torch.get_num_threads(),
        "device": _name_of(device),
        "processor": {
            "model": about_processor("model name", "CPU part"),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "flags": _flags(device),
    }


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Say what may keep a resumed training from matching an uninterrupted one bit for bit.

    Args:
        saved: Manifest in the run directory.
        now: Manifest of the training that is about to continue.

    Returns:
        Names with the value that the run had and the one now; what only one of them knows is not
        compared.
    """
    before, after = dict(_numbers(saved)), dict(_numbers(now))
    names = [name for name in after if name in before and before[name] != after[name]]
    return {name: [before[name], after[name]] for name in names}


def in_words(changed: Mapping[str, list[Any]]) -> str:
    """Return what `changes` has found as part of a sentence.

    Example:
        >>> in_words({"threads": [1, 2], "torch": ["2.12.0", "2.13.0"]})
        'threads (was 1, is 2), torch (was 2.12.0, is 2.13.0)'
    """
    return ", ".join(
        f"{_WORDS.get(name, name)} (was {before}, is {after})"
        for name, (before, after) in changed.items()
    )


def _numbers(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is compared under its name, nested names joined by dots."""
    machine = manifest.get("machine") or {}
    for name, value in machine.items():
        if name == "flags":
            yield from value.items()
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{part}", inner) for part, inner in value.items())
        else:
            yield name, value
    if "world_size" in manifest:
        yield "world_size", manifest["world_size"]
    yield from (manifest.get("versions") or {}).items()


def _name_of(device: torch.device | None) -> str:
    if device is None:
        return "cpu"
    # The number of the card says nothing: the same job gets another one every time.
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _flags(device: torch.device | None) -> dict[str, Any]:
    """Return torch's switches between ways of computing the same result on a device.

    Those of libraries for GPUs are left out elsewhere: sbi's own `seed_all_backends` sets some.
    """
    backends = torch.backends
    flags: dict[str, Any] = {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": backends.mkldnn.enabled,  # type: ignore[attr-defined] # set up by the module itself
    }
    newer: dict[str, Any] = {"mkldnn": backends.mkldnn}
    if device is not None and device.type == "cuda":
        newer |= {"cuda": backends.cuda.matmul, "cudnn": backends.cudnn}
        flags |= {
            "cudnn": backends.cudnn.enabled,
            "cudnn_deterministic": backends.cudnn.deterministic,
            "cudnn_benchmark": backends.cudnn.benchmark,
        }
        with suppress(RuntimeError):  # see below
            flags["cudnn_allow_tf32"] = backends.cudnn.allow_tf32
    # torch refuses to tell it where a program has set precisions the newer way, read below.
    with suppress(RuntimeError):
        flags["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    precisions = {name: getattr(of, "fp32_precision", None) for name, of in newer.items()}
    return {**flags, **{f"{n}_fp32_precision": p for n, p in precisions.items() if p is not None}}
