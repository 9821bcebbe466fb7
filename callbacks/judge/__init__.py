"""Judges for the judge's reward: servers, a model of this process, and the questions that they are asked."""
