"""The training loop for any torch module, and what it is assembled from."""

import sbi_ignite._import_ignite  # noqa: F401 # before the modules of this package import ignite
