"""The path, timestep laws and ODE solvers of rectified flow: pure functions of tensors."""
