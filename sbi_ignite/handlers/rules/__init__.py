"""One page per stopping rule, named like the kind of `EarlyStopping` that asks for it."""
