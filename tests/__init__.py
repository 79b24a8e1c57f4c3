"""Tests of sbi_ignite; the folders mirror the package, and some are named for a promise."""
