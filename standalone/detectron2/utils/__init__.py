"""Utilities: communication, events, logging, file access, analysis, drawing."""
