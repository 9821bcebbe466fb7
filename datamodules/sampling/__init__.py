"""Which samples a step sees: the index, the plan of batches, frequencies, orders, captions."""
