"""Small judges and reward models: tokenizers of characters, models of two layers, trained in seconds where they should prefer something."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_align.types import JudgeBackend, Prompt, Rollouts

CHARACTERS = "abcdefghij 0123456789=|:"
CHAT = "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
SCORING = "preamble: j\nsample: '{prompt}|{response}'\nending: '='\n"
PAIRWISE = "preamble: '{prompt}'\nsample: '|{response_1}|{response_2}|'\nending: '='\n"


def make_tokenizer(
    *, ten: bool = False, characters: str = CHARACTERS, pad: str | None = "<pad>", side: str = "right", **options: Any
) -> Any:
    """One token per character, what it does not know is left out; with ``ten``, "10" is a token too."""
    words = ["<pad>", "<eos>", "<bos>", *characters, *(["10"] if ten else [])]
    merges = [("1", "0")] if ten else []
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.decoder = decoders.Fuse()
    special = {"eos_token": "<eos>", "bos_token": "<bos>"} | ({"pad_token": pad} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **special, **options)


def llama_config(**config: Any) -> LlamaConfig:
    """Two layers of width 32."""
    return LlamaConfig(
        **{
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        | config
    )


def write_judge(folder: Path, tokenizer: Any, examples: Callable[[int], list[tuple[str, str]]] | None = None, steps: int = 200) -> str:
    """A causal model as a folder; trained to continue texts by answers where ``examples(n)`` gives some. Else random."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(**({"initializer_range": 0.1} if examples else {})))
    if examples is not None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
            _loss(model, tokenizer, examples(64)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _loss(model: Any, tokenizer: Any, examples: Sequence[tuple[str, str]]) -> torch.Tensor:
    rows = [(tokenizer(text)["input_ids"], [*tokenizer(answer)["input_ids"], 1]) for text, answer in examples]
    width = max(len(text) + len(answer) for text, answer in rows)
    tokens = torch.tensor([[*text, *answer, *[0] * (width - len(text) - len(answer))] for text, answer in rows])
    labels = torch.tensor([[*[-100] * len(text), *answer, *[-100] * (width - len(text) - len(answer))] for text, answer in rows])
    return model(input_ids=tokens, labels=labels).loss


def rollouts(texts: Sequence[Sequence[str]], prompts: Sequence[Any] | None = None) -> Rollouts:
    """Responses as an annotator sees them; the tokens say nothing."""
    b, k = len(texts), len(texts[0])
    mask = torch.ones(b, k, 1, dtype=torch.bool)
    return Rollouts(
        prompts=tuple(Prompt(i, "" if prompts is None else prompts[i]) for i in range(b)),
        occurrences=torch.zeros(b, dtype=torch.long),
        prompt_tokens=torch.ones(b, 1, dtype=torch.long),
        prompt_mask=torch.ones(b, 1, dtype=torch.bool),
        response_tokens=torch.ones(b, k, 1, dtype=torch.long),
        response_mask=mask,
        loss_mask=mask,
        sampling_logps=torch.zeros(b, k, 1),
        finished=mask.all(-1),
        texts=tuple(map(tuple, texts)),
        policy_version=0,
    )


def journal_means(folder: Path) -> list[float]:
    """Mean score of every rollout of a run."""
    rows = [json.loads(line) for line in (folder / "journal" / "labels-0.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [[score for row in rows if row["rollout"] == n for score in row["scores"]] for n in range(rows[-1]["rollout"] + 1)]
    return [sum(row) / len(row) for row in scores]


class Fake(JudgeBackend):
    """Answers by a function from the text of a question to log-probs; it remembers the questions."""

    identity = "fake"

    def __init__(self, answer: Callable[[str], Sequence[float]]) -> None:
        self.answer = answer
        self.questions: list[str] = []
        self.devices: list[Any] = []

    def option_logps(self, prompts, options):
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        self.questions += texts
        return torch.tensor([list(self.answer(text)) for text in texts])

    def setup(self, device):
        self.devices.append(device)

    def close(self):
        self.devices.append(None)
