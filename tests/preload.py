"""What processes that tests fork have imported: what every training needs, and no backend."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sbi.inference  # noqa: F401
    import torch._dynamo  # otherwise the first optimizer of each process imports it
    import torch.distributed

    import sbi_ignite.inference
    import sbi_ignite.training.run  # noqa: F401

torch.set_num_threads(1)
