"""Sizes that the encoders and decoders of the Deformable DETR family have in common."""

sizes = {
    "embed_dim": 256,
    "num_heads": 8,
    "feedforward_dim": 2048,
    "attn_dropout": 0.0,
    "ffn_dropout": 0.0,
    "num_layers": 6,
}
