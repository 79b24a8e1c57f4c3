"""What every process of these tests imports."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.distributed

    import sbi_ignite.inference
    import sbi_ignite.training.run  # noqa: F401

import torch

torch.set_num_threads(1)
