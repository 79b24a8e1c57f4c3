"""A model, a loss and batches come in; the trained model and a summary go out."""
