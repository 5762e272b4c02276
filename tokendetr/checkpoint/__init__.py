"""Checkpoints: atomic saving, reading without running code, matching of keys, safetensors."""
