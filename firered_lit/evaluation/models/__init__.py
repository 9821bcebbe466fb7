"""Models that an evaluation draws with: our family's, any diffusers pipeline, a server, pictures made elsewhere."""
