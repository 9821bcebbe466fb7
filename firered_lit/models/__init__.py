"""What has weights, and the sizes and layouts it expects."""
