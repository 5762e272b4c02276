"""Evaluation: the metrics of a model, and how well its tokens were chosen."""
