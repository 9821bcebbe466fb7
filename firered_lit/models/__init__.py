"""Everything with weights, and the sizes and layouts that it expects."""
