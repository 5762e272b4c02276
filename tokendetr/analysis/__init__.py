"""Analysis: operations, time and memory of models, significance, ablations, and result tables."""
