"""Tokenizers that break characters: of bytes, as GPT-2's and Qwen's are, and with bytes for what they don't know, as Llama's are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import write_tiny

SPECIAL = ["<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
CHATML = Path(__file__).parent / "chatml.jinja"


def of_bytes(merges: Sequence[tuple[str, str]] = (), bos: bool = False) -> Any:
    """A token for every byte, and for each pair of ``merges``, in which a space is written as Ġ and a line break as Ċ; with
    ``bos`` every plain text begins with one."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer, bos)


def of_characters(characters: str) -> Any:
    """A token for each of these characters, for a space before nothing else, and for every byte, of which the others are made."""
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    spaces = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrapped(tokenizer, bos=False)


def write_with_tokenizer(folder: Path, tokenizer: Any, **options: Any) -> str:
    """The tiny Llama with this tokenizer in place of its own, as a folder."""
    path = write_tiny(folder, vocab_size=len(tokenizer), **options)
    tokenizer.save_pretrained(path)
    assert len(AutoTokenizer.from_pretrained(path)) == len(tokenizer)
    return path


def _wrapped(tokenizer: Tokenizer, bos: bool) -> Any:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, additional_special_tokens=SPECIAL[3:])
