"""Record what encoder layers do with the tokens of an image, compactly for a page.

Shapes: N token.
"""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.layer_tokens import KEPT, MERGED, LayerTokens, layer_tokens, worth_drawing
from tokendetr.encoder.trace import ForwardTrace, LayerTrace
from tokendetr.predict import Predictor

__all__ = ["record_image"]


def record_image(predictor: Predictor, image_HWC: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Run a detector on an image and return the tokens of its encoder or its backbone's stages.

    Args:
        predictor: runs the detector.
        image_HWC: RGB uint8.

    Returns:
        A record for each part that works on fewer tokens, else for the encoder: ``name``;
        ``levels``, the heights and widths of the grids; and ``layers``. A layer has the ``state``
        of each token; ``query``, the query that represents it (None if every query represents one
        token); ``score`` with ``low`` and ``high`` (None if no score was recorded); and counts.
        Arrays are base64 of unsigned bytes, ``query`` of 16-bit numbers. The list is empty for a
        model without parts of this project.
    """
    with record_tokens() as trace:
        predictor(image_HWC)
    return [
        {
            "name": forward.name,
            "levels": [[int(h), int(w)] for h, w in forward.layout.level_shapes],
            "layers": [_layer(forward, layer) for layer in forward.layers],
        }
        for forward in worth_drawing(trace.forwards)
        if forward.layers
    ]


def _layer(forward: ForwardTrace, layer: LayerTrace) -> dict[str, Any]:
    tokens = layer_tokens(layer.token_map, forward.layout)
    valid_N = forward.layout.valid_BN[0].cpu().numpy()
    return {
        "state": _packed(tokens.state_N, np.uint8),
        "query": _queries(tokens),
        **_score(forward, layer),
        "queries": int(tokens.anchor_N.sum()),
        "tokens": int(valid_N.sum()),
        "kept": int((tokens.state_N == KEPT).sum()),
        "merged": int((tokens.state_N == MERGED).sum()),
    }


def _queries(tokens: LayerTokens) -> str | None:
    """Return the query of each token as 16-bit numbers from 1, 0 for none."""
    if not (tokens.state_N == MERGED).any():
        return None
    return _packed(tokens.query_N + 1, np.uint16)


def _score(forward: ForwardTrace, layer: LayerTrace) -> dict[str, Any]:
    """Return the first score with one number per token, scaled to bytes.

    The lowest score becomes 1 and the highest 255; 0 stands for no score.
    """
    shape = forward.layout.valid_BN.shape
    for name, score_BN in layer.scores.items():
        if score_BN.shape != shape:
            continue
        score_N = score_BN[0].float().cpu().numpy()
        known_N = np.isfinite(score_N) & forward.layout.valid_BN[0].cpu().numpy()
        if not known_N.any():
            continue
        low, high = float(score_N[known_N].min()), float(score_N[known_N].max())
        share_N = np.where(known_N, (score_N - low) / max(high - low, 1e-12), 0.0)
        byte_N = np.where(known_N, 1 + np.round(254 * share_N), 0)
        return {"score": _packed(byte_N, np.uint8), "low": low, "high": high, "score_name": name}
    return {"score": None, "low": 0.0, "high": 0.0, "score_name": ""}


def _packed(values: NDArray, kind: type) -> str:
    little = np.dtype(kind).newbyteorder("<")
    return base64.b64encode(values.astype(little).tobytes()).decode()
