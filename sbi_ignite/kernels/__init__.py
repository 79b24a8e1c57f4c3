"""Mathematics of torch and nflows, computed faster."""
