"""Cards: what a data set and a model are made of."""
