"""Report the selections of a pass: to a recorded trace, and in the output of each image.

Shapes: L block.
"""

from collections.abc import Sequence

from torch import Tensor

from spt_backbone.block import Selection
from spt_backbone.losses import selection_masks
from tokendetr.encoder.forward_context import current_pass
from tokendetr.tokens import Pack

__all__ = ["record_selections", "selections_by_image"]


def record_selections(selections: Sequence[Selection]) -> None:
    """Record the selections of a recorded pass, one forward trace per stage."""
    stage, recorder = 0, current_pass().recorder
    for selection in selections:
        if not isinstance(selection.pack, Pack):
            continue  # a gate without attention, or an exported graph, which records nothing
        if selection.stage != stage:
            stage = selection.stage
            recorder.begin_forward(selection.layout, f"backbone stage {stage}")
        recorder.record_score("gate", selection.logit_BN)
        recorder.record_layer(selection.pack)


def selections_by_image(
    selections: Sequence[Selection], patch_size: int
) -> list[dict[int, Tensor]]:
    """Return the selections for each image's output, by stride in pixels: bool [blocks, H, W].

    Args:
        selections: of all blocks and of the gates before them.
        patch_size: side of a token of the first stage in pixels.
    """
    layouts = {selection.stage: selection.layout for selection in selections}
    images: list[dict[int, Tensor]] = []
    for stage, mask_LBN in selection_masks(selections).items():
        layout = layouts[stage]
        mask_LBHW = mask_LBN.unflatten(2, layout.level_shapes[0])
        for image, sizes in enumerate(layout.known_sizes or ()):
            if len(images) <= image:
                images.append({})
            height, width = sizes[0]
            stride = patch_size * 2 ** (stage - 1)
            images[image][stride] = mask_LBHW[:, image, :height, :width]
    return images
