"""sbi's one-call `infer`, with training by sbi_ignite."""

from __future__ import annotations

from typing import Any

import sbi.inference as sbi_inference

from sbi_ignite.bridge.patch import patch_sbi


def infer(*args: Any, **kwargs: Any) -> Any:
    """Run sbi's `infer`, with training by sbi_ignite.

    Args:
        *args: As for `sbi.inference.infer`: simulator, prior, method, num_simulations, ...
        **kwargs: Likewise.

    Returns:
        The posterior.
    """
    with patch_sbi():
        return sbi_inference.trainers.base.infer(*args, **kwargs)
