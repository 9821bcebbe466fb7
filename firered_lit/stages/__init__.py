"""A LightningModule per stage of the chain; each `training_step` reads as the algorithm box of its paper."""
