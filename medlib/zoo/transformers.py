"""Rename the tensors of vision models of the library transformers to timm's names."""

import re

import torch

Tensors = dict[str, torch.Tensor]

# For ViT, DINOv2, DINOv3, CLIP and SigLIP: names in files, and names in memory (release 5).
RULES = [
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^(embeddings\.)?(register|storage)_tokens$", "reg_token"),
    (r"^embeddings\.position_embedding(s|\.weight)$", "pos_embed"),
    (r"^embeddings\.patch_embedding(s\.projection|s)?\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^(encoder\.|model\.)?layers?\.", "blocks."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.attention\.(attention|self)\.", ".attn."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.(attention|self_attn)\.", ".attn."),
    (r"\.attn\.(query|q_proj)\.", ".attn.q."),
    (r"\.attn\.(key|k_proj)\.", ".attn.k."),
    (r"\.attn\.(value|v_proj)\.", ".attn.v."),
    (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
]
QKV = re.compile(r"(.*\.attn)\.([qkv])\.(weight|bias)$")


def vit(tensors: Tensors) -> Tensors:
    """Rename tensors to timm's names for vision transformers. Unknown names stay as they are.

    Queries, keys and values become one tensor. In a network with registers, the position embedding
    of the class token is added to the class token, as timm does it. So the original files of DINOv2
    can be read as well.
    """
    renamed, parts = {}, {}
    for name, tensor in tensors.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        if found := QKV.match(name):
            parts.setdefault(f"{found[1]}.qkv.{found[3]}", {})[found[2]] = tensor
        else:
            renamed[name] = tensor
    for name, three in parts.items():
        if "q" in three and "v" in three:  # DINOv3 has no bias of keys
            three.setdefault("k", torch.zeros_like(three["q"]))
            renamed[name] = torch.cat([three[which] for which in "qkv"])
    for kind in "weight", "bias":
        if (joined := renamed.pop(f"attn_pool.in_{kind}", None)) is not None:
            query, *others = joined.chunk(3)
            renamed[f"attn_pool.q.{kind}"] = query
            renamed[f"attn_pool.kv.{kind}"] = torch.cat(others)
    for name in {"cls_token", "pos_embed"} & renamed.keys():  # CLIP's and SigLIP's have fewer axes
        renamed[name] = renamed[name].reshape(1, -1, renamed[name].shape[-1])
    if {"reg_token", "pos_embed", "cls_token"} <= renamed.keys():
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def eva(tensors: Tensors) -> Tensors:
    """Rename tensors to timm's names for networks of its class Eva, such as DINOv3.

    So the original files of DINOv3 can be read as well. Their biases are multiplied by a mask.
    """
    masks = {name.removesuffix("_mask"): name for name in tensors if name.endswith(".bias_mask")}
    kept = {name: tensor for name, tensor in tensors.items() if name not in masks.values()}
    kept |= {name: kept[name] * tensors[mask] for name, mask in masks.items() if name in kept}
    return {re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", n): t for n, t in vit(kept).items()}


NAMINGS = {"transformers": vit, "transformers (EVA)": eva}
