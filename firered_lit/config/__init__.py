"""From a recipe's text to objects: reading, checking against signatures and ranges, building."""
