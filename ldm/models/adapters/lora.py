"""The differences of weights that a matched LoRA file stands for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.checkpoints.lora import Group, LoraFile
from ldm.checkpoints.weights.files import Weights, open_weights
from ldm.errors import CheckpointError
from ldm.models.adapters.kinds import difference


class Reader:
    """Reads a matched file's tensors module by module."""

    def __init__(self, file: LoraFile) -> None:
        self.file = file
        self.weights: Weights = open_weights(file.header)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.file.groups)

    def weight_difference(self, group: Group, weight: Tensor, scale: float) -> Tensor | None:
        """What a group adds to its target's whole weight, float32; None for a bias alone.

        Raises CheckpointError for tensors that do not fit, or that are not finite.
        """
        roles = {role: self._read(key) for role, key in group.roles.items() if role != "diff_b"}
        if not roles:
            return None
        if group.limited:
            roles["limited"] = torch.ones(())
        if group.alpha is not None and "down" in roles:
            roles["alpha"] = torch.tensor(group.alpha * roles["down"].shape[0])
        rows = self._rows(group, weight)
        try:
            added = difference(roles, weight[rows].float(), scale)
        except (ArithmeticError, LookupError, RuntimeError, StopIteration, ValueError) as error:
            key = next(iter(group.roles.values()))
            raise CheckpointError(
                f"{self.file.header.path}: {key} and its kin do not fit the model's "
                f"{list(weight[rows].shape)} ({str(error).splitlines()[0][:80]})"
            ) from None
        if not bool(added.isfinite().all()):
            raise CheckpointError(
                f"{self.file.header.path}: has NaN or infinity in {group.target.weight}'s tensors"
            )
        if group.target.third is None:
            return added
        whole = torch.zeros_like(weight, dtype=torch.float32)
        whole[rows] = added
        return whole

    def bias_difference(self, group: Group, bias: Tensor, scale: float) -> Tensor | None:
        """What a group adds to its target's whole bias, float32; None where it adds nothing."""
        if "diff_b" not in group.roles:
            return None
        whole = torch.zeros_like(bias, dtype=torch.float32)
        whole[self._rows(group, bias)] = scale * self._read(group.roles["diff_b"]).flatten()
        return whole

    def _rows(self, group: Group, whole: Tensor) -> slice:
        third, size = group.target.third, len(whole) // 3
        return slice(None) if third is None else slice(third * size, (third + 1) * size)

    def _read(self, key: str) -> Tensor:
        return self.weights[key].float()
