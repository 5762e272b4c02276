"""Evaluation: metrics of a model, analysis of its errors, and quality of its token selection."""
