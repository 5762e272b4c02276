"""Our encoder, dense or sparse, in Hugging Face's Deformable DETR.

Shapes: B image, N all tokens, C channel, L level.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokendetr.encoder import TokenEncoder, TokenSparsifier
from tokendetr.encoder.forward_context import observe
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.integrations.huggingface_weights import from_huggingface
from tokendetr.layers.adoption import adopt_parameters
from tokendetr.tokens import LevelLayout

__all__ = ["HuggingFaceEncoder", "sparsify_huggingface"]

_OURS = "transformer.encoder."


class HuggingFaceEncoder(TokenEncoder):
    """A :class:`tokendetr.encoder.TokenEncoder` with the call signature of transformers' encoder.

    Its weights have the same names as below ``transformer.encoder`` in our detectors, so
    ``encoder.load_state_dict(ours.transformer.encoder.state_dict())`` loads a trained encoder.
    """

    def forward(  # type: ignore[override]
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        spatial_position_embeddings: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        spatial_shapes_list: Sequence[Sequence[int]] | None = None,
        level_start_index: Tensor | None = None,
        valid_ratios: Tensor | None = None,
        *,
        position_embeddings: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Encode as ``DeformableDetrEncoder`` does.

        Args:
            inputs_embeds: features [B, N, C] of all levels, finest first.
            attention_mask: bool [B, N], True = real.
            spatial_position_embeddings: positions [B, N, C].
            spatial_shapes: long [L, 2]; unused if ``spatial_shapes_list`` is given.
            spatial_shapes_list: (height, width) of each level; versions before 4.46 have none.
            level_start_index: unused; it follows from the shapes.
            valid_ratios: [B, L, 2], real share of each level's (width, height).
            position_embeddings: the positions' name before version 5.
            **kwargs: flags, unused; hidden states and attention weights are not returned.

        Returns:
            ``BaseModelOutput`` with the memory [B, N, C].

        Raises:
            TypeError: there is a further tensor, which another version of transformers passes.
            UnsupportedDetectorError: the encoder is trained with a sparsifier, whose losses
                transformers does not add.
        """
        from transformers.modeling_outputs import BaseModelOutput

        if self.training and self.sparsifier is not None:
            raise UnsupportedDetectorError(
                f"{type(self.sparsifier).__name__} cannot be trained by transformers' losses: "
                "convert the model with tokendetr.integrations.from_huggingface, train it here "
                "(tokendetr sparsify needs no labels), and load the encoder's weights into this one"
            )
        if unknown := sorted(name for name, x in kwargs.items() if isinstance(x, Tensor)):
            raise TypeError(f"{type(self).__name__} got unexpected tensors: {', '.join(unknown)}")
        shapes = spatial_shapes if spatial_shapes_list is None else spatial_shapes_list
        if shapes is None:
            raise TypeError(f"{type(self).__name__} needs spatial_shapes_list or spatial_shapes")
        if spatial_position_embeddings is None:
            spatial_position_embeddings = position_embeddings
        layout = LevelLayout.from_upstream(
            spatial_shapes=shapes,
            valid_ratios=valid_ratios,
            query_key_padding_mask=None if attention_mask is None else ~attention_mask.bool(),
            like_BNC=inputs_embeds,
        )
        memory_BNC = super().forward(
            query=inputs_embeds, query_pos=spatial_position_embeddings, layout=layout
        )
        return BaseModelOutput(last_hidden_state=memory_BNC)


def sparsify_huggingface(
    model: nn.Module, sparsifier: TokenSparsifier | None = None
) -> HuggingFaceEncoder:
    """Replace the encoder of a ``DeformableDetrForObjectDetection`` by ours, with its parameters.

    Decoder, heads and everything else are unchanged. The model is for evaluation, and the
    sparsifier's weights have to be loaded: an untrained score selects arbitrary tokens.

    Args:
        model: the detector, changed in place.
        sparsifier: the method, such as ``SparseSparsifier`` or ``FocusSparsifier``; None for a
            dense encoder.

    Returns:
        The new encoder, ``model.model.encoder``.

    Raises:
        TypeError: the model is of another class.
        UnsupportedDetectorError: the sparsifier needs something that the detector lacks, such as
            two stages.
        ValueError: the sparsifier does not fit the encoder's layers or levels.
    """
    from transformers import DeformableDetrForObjectDetection

    if not isinstance(model, DeformableDetrForObjectDetection):
        raise TypeError(
            f"only DeformableDetrForObjectDetection is supported, not {type(model).__name__}: "
            "other encoders of transformers do more in their layers (Grounding DINO fuses text)"
        )
    config = model.config
    replaced = model.model.encoder
    encoder = HuggingFaceEncoder(
        embed_dim=config.d_model,
        num_heads=config.encoder_attention_heads,
        feedforward_dim=config.encoder_ffn_dim,
        attn_dropout=config.dropout,
        ffn_dropout=config.dropout,
        num_layers=config.encoder_layers,
        num_feature_levels=config.num_feature_levels,
        num_points=config.encoder_n_points,
        sparsifier=sparsifier,
    )
    ours = from_huggingface(model.state_dict(keep_vars=True))
    layers = {
        name.removeprefix(_OURS): value for name, value in ours.items() if name.startswith(_OURS)
    }
    own = {name: value for name, value in encoder.state_dict().items() if name not in layers}
    parameter = next(replaced.parameters())
    encoder.to(device=parameter.device, dtype=parameter.dtype).train(model.training)
    adopt_parameters(encoder, {**own, **layers})
    # A DetectorView looks for the parts of a two-stage head below ``transformer``, where they have
    # the same names. Set in vars(), so that it is not a submodule and adds no state-dict keys.
    vars(model)["transformer"] = model.model
    model.model.encoder = encoder
    try:
        observe(model)
    except UnsupportedDetectorError:
        model.model.encoder = replaced
        raise
    return encoder
