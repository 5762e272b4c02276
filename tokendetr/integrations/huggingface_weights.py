"""Convert weights between Hugging Face's ``DeformableDetrForObjectDetection`` and this project.

=============================================  =================================================
transformers                                   here
=============================================  =================================================
``model.backbone.model`` (its ResNet, timm's)  ``backbone``
``model.input_proj.<i>.0``, ``.1``             ``neck.convs.<i>`` or, 3x3, ``neck.extra_convs.<j>``
``model.query_position_embeddings``            ``query_embedding``
``model.level_embed``                          ``transformer.level_embeds``
``...self_attn``, ``mlp`` of the encoder       ``...attentions.0``, ``ffns.0``
``...self_attn``, ``encoder_attn`` (decoder)   ``...attentions.0.attn``, ``attentions.1``
``class_embed``, ``bbox_embed``                the same
=============================================  =================================================

Both compute the same if our config has ``num_classes`` = ``num_labels``, and the image processor's
mean and standard deviation times 255. To convert a file of the hub for ``train.init_checkpoint``:

    python tools/export_checkpoint.py --input pytorch_model.bin --dtype float32 \\
        --output deformable_detr.safetensors --convert tokendetr.integrations.from_huggingface
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_huggingface", "to_huggingface"]

_OLDER = (  # names in files written by transformers before version 5
    (r"\.backbone\.conv_encoder\.", ".backbone."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.layers\.(\d+)\.(fc\d)\.", r".layers.\1.mlp.\2."),
)
_TIMM = (
    (r"^model\.backbone\.model\.(conv1|bn1)\.", r"backbone.stem.\1."),
    (r"^model\.backbone\.model\.layer(\d)\.", lambda m: f"backbone.res{int(m[1]) + 1}."),
    (r"^(backbone\..*\.|backbone\.stem\.)bn(\d)\.", r"\1conv\2.norm."),
    (r"^(backbone\..*)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(backbone\..*)\.downsample\.1\.", r"\1.shortcut.norm."),
)
_RESNET = "model.backbone.model."
_PARTS = {"convolution.": "", "normalization.": "norm."}
_LAYER = r"layers\.(\d+)\."
_NAMES = (  # prefixes of the transformer, used in both directions; "#" stands for a number
    ("model.level_embed", "transformer.level_embeds"),
    ("model.query_position_embeddings.", "query_embedding."),
    ("model.encoder.layers.#.self_attn.", "transformer.encoder.layers.#.attentions.0."),
    ("model.encoder.layers.#.self_attn_layer_norm.", "transformer.encoder.layers.#.norms.0."),
    ("model.encoder.layers.#.final_layer_norm.", "transformer.encoder.layers.#.norms.1."),
    ("model.encoder.layers.#.mlp.fc1.", "transformer.encoder.layers.#.ffns.0.layers.0.0."),
    ("model.encoder.layers.#.mlp.fc2.", "transformer.encoder.layers.#.ffns.0.layers.1."),
    (
        "model.decoder.layers.#.self_attn.o_proj.",
        "transformer.decoder.layers.#.attentions.0.attn.out_proj.",
    ),
    ("model.decoder.layers.#.encoder_attn.", "transformer.decoder.layers.#.attentions.1."),
    ("model.decoder.layers.#.self_attn_layer_norm.", "transformer.decoder.layers.#.norms.0."),
    ("model.decoder.layers.#.encoder_attn_layer_norm.", "transformer.decoder.layers.#.norms.1."),
    ("model.decoder.layers.#.final_layer_norm.", "transformer.decoder.layers.#.norms.2."),
    ("model.decoder.layers.#.mlp.fc1.", "transformer.decoder.layers.#.ffns.0.layers.0.0."),
    ("model.decoder.layers.#.mlp.fc2.", "transformer.decoder.layers.#.ffns.0.layers.1."),
    ("model.", "transformer."),  # proposals, heads inside the decoder, reference points
)
_PACKED = re.compile(r"(transformer\.decoder\.layers\.\d+\.attentions\.0\.attn\.in_proj)_(\w+)")
_SEPARATE = re.compile(r"model\.decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """Rename by the first pair of prefixes that matches; return other names unchanged."""
    for source, target in pairs:
        match = re.match(re.escape(source).replace(r"\#", r"(\d+)"), name)
        if match:
            found = target.replace("#", match[1]) if match.groups() else target
            return found + name[match.end() :]
    return name


def _backbone_name(name: str) -> str:
    """Return our name for a weight of transformers' or timm's ResNet."""
    rest = name.removeprefix(_RESNET)
    for source, target in _PARTS.items():
        embedder = f"embedder.embedder.{source}"
        if rest.startswith(embedder):
            return f"backbone.stem.conv1.{target}{rest.removeprefix(embedder)}"
    match = re.match(
        rf"encoder\.stages\.(\d+)\.{_LAYER}(?:(shortcut)|layer\.(\d+))\.(\w+\.)(.*)", rest
    )
    if match:
        conv = match[3] or f"conv{int(match[4]) + 1}"
        return f"backbone.res{int(match[1]) + 2}.{match[2]}.{conv}.{_PARTS[match[5]]}{match[6]}"
    for pattern, replacement in _TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of ``DeformableDetrForObjectDetection`` to this project's names.

    Args:
        weights: a state dict of the model, or a file of the hub, of any version of transformers.

    Raises:
        ValueError: the weights are of another model.
    """
    current = {}
    for name, value in weights.items():
        for pattern, replacement in _OLDER:
            name = re.sub(pattern, replacement, name)
        current[name] = value
    if not any(_SEPARATE.match(name) for name in current):
        raise ValueError(
            "these are not weights of transformers' DeformableDetrForObjectDetection: "
            "model.decoder.layers.0.self_attn.q_proj.weight is missing"
        )
    last = 0
    while (kernel := current.get(f"model.input_proj.{last}.0.weight")) is not None:
        if kernel.shape[-1] != 1:
            break
        last += 1
    ours: dict[str, Tensor] = {}
    for name, value in current.items():
        separate = _SEPARATE.match(name)
        if name.endswith("num_batches_tracked"):
            continue
        if separate:
            if separate[2] == "q":
                stem = name.replace("q_proj", "{}_proj")
                parts = [current[stem.format(part)] for part in "qkv"]
                layer = f"transformer.decoder.layers.{separate[1]}.attentions.0.attn"
                ours[f"{layer}.in_proj_{separate[3]}"] = torch.cat(parts)
        elif name.startswith(_RESNET):
            ours[_backbone_name(name)] = value
        elif name.startswith("model.input_proj."):
            index, part, kind = name.removeprefix("model.input_proj.").split(".")
            stem = f"convs.{index}" if int(index) < last else f"extra_convs.{int(index) - last}"
            ours[f"neck.{stem}.{('conv', 'norm')[int(part)]}.{kind}"] = value
        else:
            ours[_renamed(name, _NAMES)] = value
    return ours


def _resnet_name(name: str) -> str:
    """Return transformers' name for a weight of our ResNet."""
    kinds = {target: source for source, target in _PARTS.items()}
    match = re.match(
        r"backbone\.(?:stem\.conv1|res(\d)\.(\d+)\.(?:(shortcut)|conv(\d)))\.(norm\.)?(.*)", name
    )
    if match is None:
        raise ValueError(f"{name} is not a weight of a ResNet: other backbones are not supported")
    kind = kinds[match[5] or ""] + match[6]
    if match[1] is None:
        return f"{_RESNET}embedder.embedder.{kind}"
    conv = match[3] or f"layer.{int(match[4]) - 1}"
    return f"{_RESNET}encoder.stages.{int(match[1]) - 2}.layers.{match[2]}.{conv}.{kind}"


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of our Deformable DETR to transformers' names, with transformers' ResNet.

    Args:
        weights: the state dict of a ``DeformableDETR`` with a ResNet.

    Raises:
        ValueError: transformers' model has no place for a weight.
    """
    inverse = tuple((ours, theirs) for theirs, ours in _NAMES)
    convs = len({name.split(".")[2] for name in weights if name.startswith("neck.convs.")})
    theirs: dict[str, Tensor] = {}
    for name, value in weights.items():
        packed = _PACKED.match(name)
        if packed:
            layer = name.split(".")[3]
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                stem = f"model.decoder.layers.{layer}.self_attn.{part}_proj"
                theirs[f"{stem}.{packed[2]}"] = rows.clone()
        elif name.startswith("backbone."):
            theirs[_resnet_name(name)] = value
        elif name.startswith("neck."):
            _, group, index, part, kind = name.split(".")
            place = int(index) + (convs if group == "extra_convs" else 0)
            theirs[f"model.input_proj.{place}.{('conv', 'norm').index(part)}.{kind}"] = value
        elif name.startswith("transformer.encoder.") and ".layers." not in name:
            raise ValueError(f"{name} has no place in transformers' dense encoder")
        elif not name.startswith("criterion."):
            theirs[_renamed(name, inverse)] = value
    return theirs
