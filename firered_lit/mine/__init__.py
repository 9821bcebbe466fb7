"""Making the data of preference optimisation and reinforcement learning: what a model draws, rewards score, rules keep.

FireRed-Image-Edit (2602.13344), section 3.6. What each kind of mining makes is in its own file; `run.mine` is what they
share: files that a killed process goes on with, several processes, progress.
"""
