"""Causal language models that read vectors put before a question: likely answers, and answers of their own.

The vectors take the place of the word embeddings of as many tokens; where they come from is not decided here. Source:
video QA, PyraTok (arXiv 2601.16210), sec. 4.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyratok.text.hf_loading import CONFIG, load_text_model, load_tokenizer, read_config
from pyratok.vae.hub import resolve_folder

HERE = "<video>"
"""Stands in a prompt where the vectors go."""
PLAIN = HERE + "\nQuestion: {}\nAnswer:"
"""The prompt of a model whose tokenizer brings no template for conversations."""
HEAD = "lm_head"
RESCALED = ("logit_scale", "logits_scaling")


class PromptedLM:
    """A causal transformers model with its word head, frozen: Qwen, Llama, Gemma and others.

    Of a model that also sees, such as Qwen2.5-VL, only the language part is built and read. Not an ``nn.Module``, so
    that what holds one does not carry its weights into checkpoints.

    ``folder_or_id``: a folder, or a hub id, which alone is fetched. ``dtype``: what the model computes in, by default
    what its folder says.

    Raises ValueError for a folder without such a model, naming it and the fix; ImportError naming what is missing.
    """

    def __init__(
        self,
        folder_or_id: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        load_in_4bit: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        folder = resolve_folder(folder_or_id)
        self._tokenizer: Any = load_tokenizer(folder)
        self.backbone: Any = load_text_model(folder, device=device, dtype=dtype, load_in_4bit=load_in_4bit)
        config = self.backbone.config
        for name in RESCALED:
            if getattr(config, name, None) not in (None, 1.0):
                raise ValueError(f"{folder}: models whose {CONFIG} sets {name} are not supported; use another one")
        self.width: int = config.hidden_size
        self.name = folder.resolve().name if folder == Path(folder_or_id) else os.fspath(folder_or_id)
        self.device = torch.device(device)
        self._words: Any = self.backbone.get_input_embeddings()
        tied = any(getattr(part, "tie_word_embeddings", True) for part in (config, read_config(folder)))
        weight, self._bias = _word_head(folder, tied)
        # Moved into the type in which the hidden states come, also where the file has another.
        self._head = self._words.weight if weight is None else weight.to(self.device, self._words.weight.dtype)
        self._bias = None if self._bias is None else self._bias.to(self._head)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        ends = self._tokenizer.eos_token_id, config.eos_token_id
        self._ends = {i for end in ends for i in (end if isinstance(end, list) else [end]) if i is not None}

    def prompt(self, question: str) -> tuple[str, str]:
        """What is said before the vectors and after them, so that an answer comes next."""
        if self._tokenizer.chat_template:
            turn = [{"role": "user", "content": f"{HERE}\n{question}"}]
            text = self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        else:
            text = (self._tokenizer.bos_token or "") + PLAIN.format(question)
        before, _, after = text.partition(HERE)
        return before, after

    @torch.no_grad()
    def log_likelihoods(self, vectors: Tensor, question: str, answers: Sequence[str]) -> Tensor:
        """Mean log-likelihood, nats per token, of each answer behind ``vectors`` ``[n, width]``: float32 ``[N]``.

        A mean, since a sum would favour short answers. Raises ValueError for an answer without any token.
        """
        before, after = self.prompt(question)
        logits, cache = self._read(torch.cat([self.embed(before), vectors.to(self._head), self.embed(after)]))
        space = "" if after[-1:].isspace() else " "
        found = []
        for answer in answers:
            ids = self.ids(space + answer)
            if not len(ids):
                raise ValueError(f"{answer!r} has no token that {self.name} knows; reword it")
            # A copy: reading on changes what the model remembers.
            more, _ = self._read(self._words(ids[:-1]), copy.deepcopy(cache)) if len(ids) > 1 else (logits[:0], None)
            nll = F.cross_entropy(torch.cat([logits[-1:], more]).float(), ids)
            found.append(-nll)
        return torch.stack(found)

    @torch.no_grad()
    def write(self, vectors: Tensor, question: str, max_new_tokens: int = 64) -> str:
        """The answer whose every token is the most likely one, up to the end mark or ``max_new_tokens``."""
        if max_new_tokens < 1:
            raise ValueError(f"an answer has at least one token, got max_new_tokens = {max_new_tokens}")
        before, after = self.prompt(question)
        logits, cache = self._read(torch.cat([self.embed(before), vectors.to(self._head), self.embed(after)]))
        written: list[int] = []
        while (token := int(logits[-1].argmax())) not in self._ends:
            written.append(token)
            if len(written) == max_new_tokens:
                break
            logits, cache = self._read(self._words(torch.tensor([token], device=self.device)), cache)
        return str(self._tokenizer.decode(written, skip_special_tokens=True)).strip()

    def ids(self, text: str) -> Tensor:
        """int64 ``[n]``; marks that the text spells out are marks, none is added."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def embed(self, text: str) -> Tensor:
        """Word embeddings ``[n, width]``."""
        embedded: Tensor = self._words(self.ids(text))
        return embedded

    def _read(self, inputs: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits ``[n, vocabulary]`` at the places of ``inputs`` ``[n, width]``, and all that was read so far."""
        output = self.backbone(inputs_embeds=inputs[None], past_key_values=cache, use_cache=True)
        logits = F.linear(output.last_hidden_state[0].to(self._head), self._head, self._bias)
        if self._softcap:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits, output.past_key_values


def _word_head(folder: Path, tied: bool) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of the layer that gives words; no weight where it is the table of the word embeddings."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (a file, no mapping)
                    if f".{name}".rpartition(".")[0].endswith(f".{HEAD}"):
                        found[name.rpartition(".")[2]] = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    if found.keys() - {"weight", "bias"}:
        raise ValueError(f"{folder}: its {HEAD} is quantized; take a checkpoint that keeps {HEAD} as it is")
    if "weight" not in found and not tied:
        raise ValueError(
            f"{folder}: no {HEAD}.weight, so it gives no words; give the folder of a causal language model"
        )
    return found.get("weight"), found.get("bias")
