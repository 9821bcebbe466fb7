"""The corpus engine: from raw pictures and pairs to a training set. Annotate, fit, select, write, report."""
