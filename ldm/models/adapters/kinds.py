"""What each kind of adapter adds to a weight: one function a kind.

Each takes the tensors of a module by their roles (`ldm.checkpoints.weights.lora_keys`), float32,
and the weight [out,in,...] that it changes; it returns a difference that is flat or has the
weight's shape. The formulas follow sd-scripts, LyCORIS and PEFT; where these differ, the README of
the golden data says what was recorded, and the functions say what is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Roles = Mapping[str, Tensor]


def alpha_scale(roles: Roles, rank: int) -> float:
    """alpha / rank; 1 where alpha is missing or 0."""
    alpha = float(roles["alpha"]) if "alpha" in roles else 0.0
    return alpha / rank if alpha else 1.0


def lora(roles: Roles, weight: Tensor) -> Tensor:
    """alpha / rank * up down (Hu et al. 2021, arXiv 2106.09685); `mid` is LoCon's middle kernel."""
    up, down = roles["up"], roles["down"]
    scale = alpha_scale(roles, down.shape[0])
    if "mid" in roles:
        flat = up.flatten(1), down.flatten(1)
        return scale * torch.einsum("om,mnkl,ni->oikl", flat[0], roles["mid"], flat[1])
    return scale * (up.flatten(1) @ down.flatten(1))


def loha(roles: Roles, weight: Tensor) -> Tensor:
    """alpha / rank * (w1_a w1_b) * (w2_a w2_b), elementwise (Hyeon-Woo et al. 2021, 2108.06098)."""
    scale = alpha_scale(roles, roles["w1_b"].shape[0])
    one = _factored(roles["w1_a"], roles["w1_b"], roles.get("t1"))
    return scale * one * _factored(roles["w2_a"], roles["w2_b"], roles.get("t2"))


def lokr(roles: Roles, weight: Tensor) -> Tensor:
    """The Kronecker product of two matrices, each of which may be factored.

    alpha / rank counts once (as in LyCORIS' forward pass), and not if neither half is factored.
    """
    ranks = [roles[name].shape[0] for name in ("kron1_b", "kron2_b") if name in roles]
    scale = alpha_scale(roles, ranks[0]) if ranks else 1.0
    one = roles["kron1"] if "kron1" in roles else roles["kron1_a"] @ roles["kron1_b"]
    if "kron2" in roles:
        two = roles["kron2"]
    else:
        two = _factored(roles["kron2_a"], roles["kron2_b"], roles.get("kron_t2"))
    one = one.reshape(*one.shape[:2], *[1] * (two.dim() - 2))
    return scale * torch.kron(one, two.contiguous())


def full(roles: Roles, weight: Tensor) -> Tensor:
    """The difference itself; one for fewer input channels leaves the others as they are."""
    difference = roles["set"] - weight if "set" in roles else roles["diff"]
    if difference.dim() == weight.dim() == 4 and difference.shape[1] < weight.shape[1]:
        whole = torch.zeros_like(weight)
        whole[:, : difference.shape[1]] = difference
        return whole
    return difference


def ia3(roles: Roles, weight: Tensor) -> Tensor:
    """W * w, along the output or, with on_input, the input (Liu et al. 2022, arXiv 2205.05638)."""
    axis = 1 if bool(roles["on_input"]) else 0
    shape = [1] * weight.dim()
    shape[axis] = weight.shape[axis]
    return weight * roles["ia3"].reshape(shape)


def glora(roles: Roles, weight: Tensor) -> Tensor:
    """alpha / rank * (W a1 a2 + b1 b2) (Chavan et al. 2023, arXiv 2306.07967).

    Early files have the factors the other way round, told by their shapes.
    """
    flat = weight.flatten(1)
    a1, a2, b1, b2 = (roles[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if b1.shape[0] == flat.shape[0] and a1.shape[0] == flat.shape[1]:
        return alpha_scale(roles, a2.shape[0]) * (flat @ a1 @ a2 + b1 @ b2)
    return alpha_scale(roles, a1.shape[0]) * (flat @ a2 @ a1 + b2 @ b1)


def dora(roles: Roles, weight: Tensor, low_rank: Tensor) -> Tensor:
    """m V / norm(V) - W with V = W + `low_rank` (Liu et al. 2024, arXiv 2402.09353).

    The norm is over each output row, or each input column where the magnitude is [1,in].
    """
    value = weight + low_rank.reshape(weight.shape)
    magnitude = roles["magnitude"]
    by_column = magnitude.dim() > 1 and magnitude.shape[0] == 1 != weight.shape[0]
    axis = 1 if by_column else 0
    others = [n for n in range(weight.dim()) if n != axis]
    shape = [1] * weight.dim()
    shape[axis] = weight.shape[axis]
    norm = value.square().sum(others, keepdim=True).sqrt() + torch.finfo(torch.float32).eps
    return magnitude.reshape(shape) * value / norm - weight


def oft(roles: Roles, weight: Tensor, scale: float) -> Tensor:
    """(I + s (R - I))^T W - W, block by block, with Cayley's R (Qiu et al. 2023, arXiv 2306.07280).

    4-dimensional blocks are BOFT's (Liu et al. 2023, arXiv 2311.06243): s counts in each stage.
    """
    blocks = roles["blocks"]
    turn = _rotation(blocks, weight.shape[0], roles)
    turn = torch.lerp(torch.eye(blocks.shape[-1]), turn, scale)
    if blocks.dim() == 4:
        changed = _butterfly(turn, weight)
    else:
        rows = weight.reshape(*blocks.shape[:2], *weight.shape[1:])
        changed = torch.einsum("knm,kn...->km...", turn, rows).flatten(0, 1)
    if "rescale" in roles:
        changed = changed * roles["rescale"].reshape(-1, *[1] * (weight.dim() - 1))
    return changed - weight


def _rotation(blocks: Tensor, out: int, roles: Roles) -> Tensor:
    """(I + Q)(I - Q)^-1 with Q = B - B^T, the norm of all Q limited to alpha * out."""
    q = blocks - blocks.transpose(-1, -2)
    limit = float(roles.get("alpha", torch.zeros(()))) * out
    if limit > 0 or "limited" in roles:
        norm = q.norm() + 1e-8
        q = q * (norm.clamp(max=limit) / norm)
    identity = torch.eye(blocks.shape[-1]).expand_as(q)
    turn: Tensor = (identity + q) @ torch.linalg.inv(identity - q)
    return turn


def _butterfly(turn: Tensor, weight: Tensor) -> Tensor:
    """Rotations [stages,n,b,b] of blocks of rows, whose order each stage shuffles."""
    size, rest, rows = turn.shape[-1], weight.shape[1:], weight
    for stage, blocks in enumerate(turn):
        k = 2**stage * (size // 2)
        rows = rows.reshape(-1, 2, k, *rest).transpose(1, 2).reshape(-1, size, *rest)
        rows = torch.einsum("bij,bj...->bi...", blocks, rows)
        rows = rows.reshape(-1, k, 2, *rest).transpose(1, 2).reshape(-1, *rest)
    return rows


def _factored(a: Tensor, b: Tensor, kernel: Tensor | None) -> Tensor:
    """a b; with a kernel [r,r,k,k] the factors are [rank,out] and [rank,in]."""
    if kernel is None:
        return a @ b
    return torch.einsum("ijkl,jr,ip->prkl", kernel, b, a)


# A role that only one kind has -> the kind's name, and its function of tensors and weight.
KINDS: Mapping[str, tuple[str, Callable[[Roles, Tensor], Tensor]]] = {
    "up": ("LoRA", lora),
    "w1_a": ("LoHa", loha),
    "kron1": ("LoKr", lokr),
    "kron1_a": ("LoKr", lokr),
    "ia3": ("(IA)3", ia3),
    "a1": ("GLoRA", glora),
    "diff": ("full difference", full),
    "set": ("full difference", full),
}


def is_dependent(roles: Mapping[str, object]) -> bool:
    """Whether the difference depends on what other adapters did before: it is applied last."""
    return "magnitude" in roles or "blocks" in roles


def difference(roles: Roles, weight: Tensor, scale: float) -> Tensor:
    """What a module's tensors add to a weight, at a user's weight `scale`; the weight's shape."""
    if "blocks" in roles:
        return oft(roles, weight, scale)
    of_kind = next(KINDS[role][1] for role in KINDS if role in roles)
    added = of_kind(roles, weight)
    if "magnitude" in roles:
        added = dora(roles, weight, added)
    if added.numel() != weight.numel():
        raise ValueError(f"{math.prod(added.shape)} numbers for {math.prod(weight.shape)}")
    return scale * added.reshape(weight.shape)
