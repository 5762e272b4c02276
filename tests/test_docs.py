"""The examples and names in the documentation exist and work as printed."""

import ast
import re
from pathlib import Path

import torch

from tests.plain_encoder import CHANNELS, make_encoder
from tests.pyramids import make_batch
from tokendetr.encoder import TokenEncoder
from tokendetr.encoder.forward_context import record_tokens

DOCS = Path(__file__).resolve().parents[1] / "docs"
SHAPES = ((8, 8), (4, 4))


def example() -> dict:
    """Return the names of the page's two methods, which its first blocks define."""
    text = (DOCS / "add_a_method.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]:
        exec(compile(code, "add_a_method.md", "exec"), names)  # noqa: S102
    return names


def encode(sparsifier, query_BNC):
    torch.manual_seed(0)
    encoder = TokenEncoder(
        embed_dim=16,
        num_heads=2,
        feedforward_dim=32,
        num_layers=2,
        num_feature_levels=2,
        sparsifier=sparsifier,
    ).eval()
    with torch.no_grad(), record_tokens() as trace:
        memory_BNC = encoder(query_BNC, spatial_shapes=torch.tensor(SHAPES))
    return memory_BNC, trace


def test_the_documented_method_keeps_the_strongest_tokens():
    method = example()["StrongestTokens"]
    query_BNC = torch.randn(2, 80, 16, generator=torch.Generator().manual_seed(1))
    memory_BNC, trace = encode(method(keep_ratio=0.25), query_BNC)
    kept_BK = trace.forwards[0].layers[0].token_map.anchor_BK
    strongest_BK = query_BNC.norm(dim=-1).topk(20).indices
    assert torch.equal(kept_BK.sort().values, strongest_BK.sort().values)
    changed_BN = (memory_BNC != query_BNC).any(dim=-1)
    assert torch.equal(changed_BN.nonzero()[:, 1].view(2, 20), kept_BK.sort().values)


def test_keeping_all_tokens_is_the_dense_encoder():
    method = example()["StrongestTokens"]
    query_BNC = torch.randn(2, 80, 16, generator=torch.Generator().manual_seed(1))
    all_BNC, _ = encode(method(keep_ratio=1.0), query_BNC)
    dense_BNC, _ = encode(None, query_BNC)
    torch.testing.assert_close(all_BNC, dense_BNC)


def test_the_documented_mask_keeps_every_second_real_token_of_a_padded_batch():
    batch, _ = make_batch([(16, 21), (9, 10)], CHANNELS)
    encoder = make_encoder(example()["EverySecondToken"]())
    with torch.no_grad(), record_tokens() as trace:
        encoder(**batch.inputs)
    kept = trace.forwards[0].layers[0].token_map
    for index_K, own_K, valid_N in zip(
        kept.anchor_BK, kept.valid_BK, batch.layout.valid_BN, strict=True
    ):
        assert torch.equal(index_K[own_K], valid_N.nonzero()[::2, 0])


def test_every_stop_of_the_walk_exists_and_is_visited_once():
    text = (DOCS / "architecture.md").read_text()
    stops = re.findall(r"^\| `([\w/.]+)`: `([\w.]+)` \|", text, flags=re.MULTILINE)
    assert len(stops) == len(set(stops)) > 10
    for file, name in stops:
        body = ast.parse((DOCS.parent / file).read_text()).body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{file} has no {name}"
            body = getattr(found[0], "body", [])
