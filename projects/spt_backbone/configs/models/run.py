"""What changes in a run on COCO when the backbone is SPT."""

from omegaconf import DictConfig

from spt_backbone.config import watch_selection


def on_spt(dataloader: DictConfig, optimizer: DictConfig, train: DictConfig) -> None:
    """Watch what is selected, let gates learn like the detector and start from Swin-T."""
    watch_selection(dataloader.evaluator)
    # The first name that fits decides: gates are new.
    optimizer.params.lr_factor_func.factors = {"gate": 1.0, "backbone": 0.1}
    train.init_checkpoint = "/path/to/swin_tiny_patch4_window7_224.pth?matching_heuristics=True"
