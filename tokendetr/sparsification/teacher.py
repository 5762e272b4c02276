"""The dense detector as a teacher: its encoder's inputs and outputs, and its decoder's attention.

Shapes: B image, N all tokens, C channel, L level.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokendetr.encoder import EncoderContext
from tokendetr.encoder.decoder_attention import DecoderAttention
from tokendetr.encoder.detector_view import DetectorView
from tokendetr.errors import NotSparsifiableError
from tokendetr.sparsification.decoding import DecoderCall, DecoderRecorder
from tokendetr.tokens import LevelLayout

__all__ = ["DensePass", "DenseTeacher", "find_encoder"]


@dataclass
class DensePass:
    """One forward pass of a dense detector.

    Attributes:
        layout: geometry of the batch.
        input_BNC: the tokens that enter the encoder.
        query_pos_BNC: their positions, or None.
        reference_points_BNL2: their reference points.
        memories: all tokens [B, N, C] after each layer of the encoder.
        memory_BNC: the encoder's output: the last of ``memories``, normalized if the encoder has a
            final norm.
        mass_BN: the decoder's attention to each token; None if it was not requested.
        decoding: the decoder's call; None if it was not requested.
    """

    layout: LevelLayout
    input_BNC: Tensor
    query_pos_BNC: Tensor | None
    reference_points_BNL2: Tensor
    memories: list[Tensor] = field(default_factory=list)
    memory_BNC: Tensor = field(init=False)
    mass_BN: Tensor | None = None
    decoding: DecoderCall | None = None

    def context(self, student: nn.Module) -> EncoderContext:
        """Return a context for another detector's sparsifier to plan a pass of these tokens."""
        return EncoderContext(
            layout=self.layout,
            memory_BNC=self.input_BNC,
            query_pos_BNC=self.query_pos_BNC,
            reference_points_BNL2=self.reference_points_BNL2,
            num_layers=len(self.memories),
            run_dense=lambda: self.memory_BNC,
            detector=DetectorView(student),
        )

    def encode(self, encoder: nn.Module) -> Tensor:
        """Run another encoder on the same tokens and return its memory [B, N, C]."""
        memory: Tensor = encoder(
            query=self.input_BNC,
            query_pos=self.query_pos_BNC,
            reference_points=self.reference_points_BNL2,
            layout=self.layout,
        )
        return memory


class DenseTeacher:
    """Runs a dense detector without gradients, and records the inputs and outputs of its encoder.

    Args:
        detector: a detector with a deformable encoder, ours or detrex's.

    Raises:
        NotSparsifiableError: it has none.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector.eval()
        self.encoder = find_encoder(detector)

    @torch.no_grad()
    def __call__(
        self,
        records: Sequence[dict[str, Any]],
        *,
        with_mass: bool = False,
        with_decoding: bool = False,
    ) -> DensePass:
        """Run a batch of detectron2's inputs.

        Args:
            records: images.
            with_mass: also sum the decoder's attention to each token.
            with_decoding: also record the decoder's call.

        Raises:
            NotSparsifiableError: the decoder's call cannot be repeated.
        """
        seen: list[DensePass] = []
        layers: Any = self.encoder.layers
        with ExitStack() as stack:
            attention: list[DecoderAttention] = []
            if with_decoding:
                recorder = stack.enter_context(DecoderRecorder(self.detector))

            def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.append(_inputs_of(args, kwargs))
                if with_mass:
                    watch = DecoderAttention(DetectorView(self.detector), seen[0].layout)
                    attention.append(stack.enter_context(watch))

            def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                seen[0].memories.append(output)

            def end(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                seen[0].memory_BNC = output

            hooks = [self.encoder.register_forward_pre_hook(begin, with_kwargs=True)]
            hooks.append(self.encoder.register_forward_hook(end))
            hooks += [layer.register_forward_hook(note) for layer in layers]
            for hook in hooks:
                stack.callback(hook.remove)
            self.detector(records)
            if attention:
                seen[0].mass_BN = attention[0].mass_BN
            if with_decoding:
                seen[0].decoding = recorder.call(seen[0].memory_BNC, seen[0].layout)
        return seen[0]


def _inputs_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> DensePass:
    query_BNC = kwargs["query"] if "query" in kwargs else args[0]
    layout = kwargs.get("layout")
    if layout is None:
        layout = LevelLayout.from_upstream(
            spatial_shapes=kwargs["spatial_shapes"],
            valid_ratios=kwargs.get("valid_ratios"),
            query_key_padding_mask=kwargs.get("query_key_padding_mask"),
            like_BNC=query_BNC,
        )
    reference_BNL2 = kwargs.get("reference_points")
    if reference_BNL2 is None:
        reference_BNL2 = layout.reference_points_BNL2().to(query_BNC.dtype)
    return DensePass(layout, query_BNC, kwargs.get("query_pos"), reference_BNL2)


def find_encoder(detector: nn.Module) -> nn.Module:
    """Return a detector's deformable encoder.

    Raises:
        NotSparsifiableError: it has none.
    """
    encoder = getattr(getattr(detector, "transformer", None), "encoder", None)
    layers = getattr(encoder, "layers", None)
    if not isinstance(encoder, nn.Module) or not isinstance(layers, nn.ModuleList):
        raise NotSparsifiableError(
            f"{type(detector).__name__} has no encoder at transformer.encoder: only detectors with "
            "a deformable encoder can be made sparse"
        )
    return encoder
