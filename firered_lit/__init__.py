"""Train an instruction image editor from a Qwen-Image-family diffusion transformer, stage by stage."""

__version__ = "0.1.0"
