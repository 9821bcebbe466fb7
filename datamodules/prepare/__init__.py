"""`prepare`: rows become encoded samples, part by part, so that it can be stopped and go on."""
