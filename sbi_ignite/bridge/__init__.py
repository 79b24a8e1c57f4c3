"""The bridge to sbi: the one place that knows sbi's private names.

Whichever part of it is imported first checks that the installed sbi has what is needed.
"""

from sbi_ignite.bridge.probe import check_sbi

check_sbi()
