"""Checkpoints: atomic saving, reading without running code, matching of keys, safetensors.

``weights`` matches a file's keys with a model's and reports them, ``reading`` reads the file,
``averaged`` chooses between weights and their moving average, ``backbone_weights`` recognizes bare
backbones, ``checkpointer`` saves. ``finite`` finds NaN in them, and
``key_names`` only shortens keys for messages.
"""
