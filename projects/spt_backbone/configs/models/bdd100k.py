"""Changes of a config for BDD100K: ten classes, boxes without masks, 69,863 training images."""

from tokendetr.data.bdd100k import register_bdd100k, register_bdd_s

NUM_CLASSES = 10
ITERATIONS_PER_EPOCH = 69_863 // 16

register_bdd100k()
register_bdd_s()


def on_bdd100k(model, dataloader, train, *, name="bdd100k"):
    """Change a COCO config to BDD100K, or to a part of it (``name``) with as many steps."""
    model.roi_heads.num_classes = NUM_CLASSES
    for part in ("mask_in_features", "mask_pooler", "mask_head"):
        model.roi_heads.pop(part)
    model.backbone.bottom_up.selection_labels = "boxes"
    dataloader.train.dataset.names = f"{name}_train"
    dataloader.train.mapper.use_instance_mask = False
    dataloader.test.dataset.names = f"{name}_val"
    train.max_iter = 36 * ITERATIONS_PER_EPOCH
