"""Reports of an evaluation: tables in Markdown and JSON, plots, a page to look at, and the record in MLflow."""

from firered_lit.evaluation.report.writing import write

__all__ = ["write"]
