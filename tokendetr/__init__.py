"""Efficient detection transformers for detectron2 and detrex.

The names in ``__all__`` are the public interface. Each is imported on first use, so importing the
package alone loads neither torch nor detectron2.
"""

from tokendetr._lazy import lazy_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
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
    },
)
