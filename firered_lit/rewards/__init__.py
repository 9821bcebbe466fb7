"""The arithmetic of rewards; engines that read images live in `callbacks`."""
