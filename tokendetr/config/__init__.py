"""Lazy configs: load with strict overrides, edit, and look up by name.

Each name is imported on first use: looking a config up loads neither torch nor detectron2.
"""

from tokendetr._lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "tokendetr.config.edit": (
            "add_bypass",
            "all_or_nothing",
            "detectron2_model",
            "observed",
            "resize",
            "sparsify",
            "sparsify_pixel_decoder",
        ),
        "tokendetr.config.files": ("checkpoint_file",),
        "tokendetr.config.fragments": ("get_fragment",),
        "tokendetr.config.load": ("load_config",),
        "tokendetr.config.overrides": ("apply_overrides",),
        "tokendetr.config.wrap": ("target_name", "wrap_target"),
        "tokendetr.config.zoo": ("zoo",),
    },
)
