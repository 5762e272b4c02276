"""Checks that need the real detectron2 and detrex, and what records their facts for the others."""
