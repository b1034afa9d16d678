"""A prior that is a transformers language model: word after word, behind the caption, by what it knows of sequences.

```
caption (projected)   <SOI>   q1_1 ...  q1_n + <Q-SEP>   q2_1 ...      what the language model reads
                      q1_1    q1_2 ...  q2_1             q2_2 ...      what is predicted there
```

Words enter and leave as in :class:`~pyratok.tasks.generation.autoregressive.ARPrior`, by embeddings of their bits and a
factorised head; between them any causal model that takes ``inputs_embeds`` (Qwen2, Qwen2.5-VL's decoder, Llama ...)
stands in for the transformer that knows places: where a word lies is told by what is added to it alone.

Source: PyraTok (arXiv 2601.16210), App. B.4: text to video through the decoder of Qwen2.5-VL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.model.alignment import TokenLMConfig, build_backbone, require_causal
from pyratok.nn.lora import LoRAConfig, inject
from pyratok.tasks.generation.autoregressive import ARPrior
from pyratok.tasks.generation.backbone import Backbone, KVCache, TextMemory, Turn
from pyratok.tasks.generation.config import PriorConfig

BACKBONE = "backbone.model."
"""Where the weights of the language model are in the state of a prior."""


class LLMPrior(ARPrior):
    """The prior of kind ``llm``.

    With ``config.lora_rank`` the language model stays as it is under adapters, and a prior on disk holds these alone:
    to be read it needs the folder that ``config.language_model`` names.
    """

    begun = (BACKBONE,)

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        adapted = {name for name, weight in self.named_parameters() if weight.requires_grad}
        lent = {name for name in self.state_dict() if name.startswith(BACKBONE) and name not in adapted}
        self._lent = lent if config.lora_rank else set[str]()

    def _make_backbone(self, config: PriorConfig) -> Backbone:
        return cast(Backbone, LanguageBackbone(config))

    def own_state(self) -> dict[str, Tensor]:
        """What the prior has learned: all but a language model that stays as it is."""
        return {name: value for name, value in self.state_dict().items() if name not in self._lent}

    def lent_digest(self) -> str:
        digest = hashlib.sha256()
        state = self.state_dict()
        for name in sorted(self._lent):
            digest.update(name.encode())
            digest.update(state[name].cpu().numpy().tobytes())
        return digest.hexdigest()[:16] if self._lent else ""

    def load_own(self, weights: Mapping[str, Tensor]) -> None:
        wanted = self.own_state()
        other = [name for name in wanted.keys() | weights.keys() if not _alike(wanted.get(name), weights.get(name))]
        if other:
            raise ValueError(f"the weights do not fit the configuration: {len(other)} differ, such as {min(other)}")
        self.load_state_dict(weights, strict=False)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


class LanguageBackbone(nn.Module):
    """A causal language model in the place of :class:`~pyratok.tasks.generation.backbone.Backbone`."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        shape = TokenLMConfig(
            num_levels=1,
            text_dim=config.text_dim,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            backbone=config.language_model,
        )
        # What learns, and what is averaged, does so in float32, whatever the checkpoint is stored in.
        self.model = build_backbone(shape).float()
        width = self.model.config.hidden_size
        if width != config.hidden_size:
            raise ValueError(f"hidden_size must be that of the language model, {width}, got {config.hidden_size}")
        # Tokens here are no text: a table of word pieces would only take memory, and never get a gradient.
        self.model.set_input_embeddings(nn.Identity())
        require_causal(self.model, width)
        if config.lora_rank:
            inject(self.model, LoRAConfig(rank=config.lora_rank, alpha=2.0 * config.lora_rank))
            for name, weight in self.model.named_parameters():
                weight.requires_grad_(name.endswith((".down", ".up")))
        else:
            self.model.requires_grad_(True)

    def remember(self, text_BNH: Tensor, mask_BN: Tensor) -> TextMemory:
        """The caption is read before all words, as they are."""
        return TextMemory(((text_BNH, text_BNH),), mask_BN[:, None, None])

    def forward(
        self,
        x: Tensor,
        turn: Turn,
        memory: TextMemory,
        *,
        causal: bool = True,
        allowed: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """``[B, m, H]`` to the same shape. ``turn`` is not read: the model counts places itself."""
        assert causal, "a language model reads in one direction"
        assert allowed is None, "a language model reads in one direction"
        told, (caption, _) = memory.mask[:, 0, 0], memory.layers[0]
        begins = cache is None or not cache.length
        inputs = torch.cat([caption.to(x.dtype), x], dim=1) if begins else x
        read = x.shape[1] + (0 if cache is None else cache.length)
        mask = F.pad(told, (0, read), value=True)
        # Padding of a caption takes no place.
        places = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -inputs.shape[1] :]
        output = self.model(
            inputs_embeds=inputs.to(self.model.dtype),
            attention_mask=mask.long(),
            position_ids=places,
            past_key_values=None if begins or cache is None else cache.beside,
            use_cache=cache is not None,
        )
        if cache is not None:
            cache.beside = output.past_key_values
        found: Tensor = output.last_hidden_state[:, -x.shape[1] :].to(x.dtype)
        return found
