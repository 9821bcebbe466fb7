"""Evaluation: from a judge's answers to scores, and from scores to statements with intervals."""
