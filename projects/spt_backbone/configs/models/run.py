"""Changes of a training on COCO for SPT as the backbone."""

from omegaconf import DictConfig

from spt_backbone.config import watch_selection


def on_spt(dataloader: DictConfig, optimizer: DictConfig, train: DictConfig) -> None:
    """Log select ratios, train gates at the detector's learning rate, start from Swin-T."""
    watch_selection(dataloader.evaluator)
    # The first of these keys that a module's name contains decides. Gates are new, so they learn
    # at the full rate although they are in the backbone.
    optimizer.params.lr_factor_func.factors = {"gate": 1.0, "backbone": 0.1}
    train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth?matching_heuristics=True"
