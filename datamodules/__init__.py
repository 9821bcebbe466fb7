"""The way from users' files to typed batches."""
