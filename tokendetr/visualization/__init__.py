"""Drawings of detections, data sets, and the tokens that a model works on."""
