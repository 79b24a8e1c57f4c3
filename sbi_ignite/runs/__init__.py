"""The states of a training come in; a directory that is whole at every instant goes out."""
