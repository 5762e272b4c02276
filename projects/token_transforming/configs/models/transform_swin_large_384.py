"""The paper's reduction for detection: 64 of the 144 tokens of a window in stage 3.

It starts with the stage's ninth block; all tokens are restored at the stage's end.
"""

options = {
    "layers": (12,),
    "keep_ratio": 64 / 144,
    "threshold": 0.5,
    "temperature": 150.0,
    "method": "transforming",
    "window_bias": "interpolated",
}
