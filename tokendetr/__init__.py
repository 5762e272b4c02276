"""Efficient detection transformers for detectron2 and detrex.

The names in ``__all__`` are the public interface. Each is imported on first use, so importing the
package alone loads neither torch nor detectron2.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "tokendetr": ("__version__",),
    "tokendetr.analysis.flops": ("count_flops",),
    "tokendetr.checkpoint.safetensors": ("save_safetensors",),
    "tokendetr.checkpoint.weights": ("load_weights",),
    "tokendetr.config": (
        "add_bypass",
        "apply_overrides",
        "load_config",
        "resize",
        "sparsify",
        "zoo",
    ),
    "tokendetr.encoder": (
        "EncoderContext",
        "TokenEncoder",
        "TokenPlan",
        "TokenSparsifier",
    ),
    "tokendetr.encoder.forward_context": ("record_tokens",),
    "tokendetr.errors": (
        "CheckpointMismatchError",
        "CheckpointWriteError",
        "ConfigError",
        "DatasetError",
        "UnsupportedDetectorError",
        "NonFiniteLossError",
        "SampleError",
        "UnsafeCheckpointError",
    ),
    "tokendetr.integrations": ("Accelerated", "accelerate"),
    "tokendetr.layers": ("EncoderLayer", "MultiScaleDeformableAttention", "ScoreHead"),
    "tokendetr.ops": ("ms_deform_attn", "packed_attention", "use_reference"),
    "tokendetr.predict": ("Detection", "Detections", "Detector", "Predictor", "load"),
    "tokendetr.train.run": ("fit",),
    "tokendetr.tokens": (
        "Identity",
        "Keep",
        "LevelLayout",
        "Merge",
        "Mix",
        "Pack",
        "TokenMap",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'tokendetr' has no attribute {name!r}")
    try:
        module = importlib.import_module(home)
        # zoo is a submodule that tokendetr.config does not import, so it is no attribute of it.
        value = importlib.import_module(f"{home}.zoo") if name == "zoo" else getattr(module, name)
    except ModuleNotFoundError as error:
        from tokendetr.errors import UPSTREAM, upstream_missing

        if error.name not in UPSTREAM:
            raise
        raise ModuleNotFoundError(upstream_missing(error.name), name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names and whatever has been imported already."""
    return sorted({*globals(), *__all__})
