"""Checkpoints: atomic files, weights read without running code, key names, safetensors."""
