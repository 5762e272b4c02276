"""Selection of tokens by plain sorting."""


def naive_topk(scores: list[float], valid: list[bool], count: int) -> list[int]:
    order = sorted(
        (i for i, ok in enumerate(valid) if ok),
        key=lambda i: (-scores[i] if scores[i] == scores[i] else float("inf"), i),
    )
    return order[:count]
