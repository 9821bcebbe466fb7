"""From the files that users have to typed batches."""
