"""A sentence encoder in PyTorch: a model of transformers, and what makes one vector of those of its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fettle.optimizer.sources.sentence import OUTPUT

LEAST = 1e-9  # tokens that a mean is taken over, where all are padding


class SentenceEncoder(nn.Module):
    """The vector of each text: [items, size]."""

    main_input_name = "input_ids"

    def __init__(self, model: Any, pooling: str, normalized: bool) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self._pooling, self._normalized = pooling, normalized

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """All inputs [items, tokens]."""
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = self.model(input_ids=input_ids, attention_mask=mask, **kinds).last_hidden_state
        sentence = self._pooled(tokens, mask.unsqueeze(-1).to(tokens.dtype))
        return {OUTPUT: nn.functional.normalize(sentence, dim=-1) if self._normalized else sentence}

    def _pooled(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return tokens[:, 0]
        if self._pooling == "max":
            return tokens.masked_fill(mask == 0, -torch.inf).amax(dim=1)
        return (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=LEAST)
