"""Print, as JSON, the installed versions and how a small network is trained with them."""

from __future__ import annotations

import json
import logging
import platform
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
logging.disable()

import torch  # noqa: E402
from sbi.utils import BoxUniform  # noqa: E402

from sbi_ignite import NPE, TrainConfig  # noqa: E402

prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((1000,))
trainer = NPE(prior, show_progress_bars=False)
trainer.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))
trainer.train(TrainConfig(max_epochs=12, batch_size=100))
found = {
    "python": platform.python_version(),
    "executor": trainer.training_summary.executor,
    "reason": trainer.training_summary.executor_reason,
    "versions": {name: version(name) for name in sys.argv[1:]},
}
print(json.dumps(found))
