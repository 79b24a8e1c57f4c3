"""sbi's own tests under the patch: no failure that sbi alone does not have."""
