"""The bridge to sbi: the one place that knows sbi's private names."""
