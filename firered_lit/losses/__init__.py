"""One paper technique per file; every loss is a pure function that returns one value per sample."""
