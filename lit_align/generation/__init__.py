"""From prompts and a policy to responses."""

from lit_align.generation.bfloat16 import Bfloat16Sampler
from lit_align.generation.engine import Engine, Written
from lit_align.generation.external import EngineSampler
from lit_align.generation.sampler import CacheSampler
from lit_align.generation.vllm_engine import VLLMEngine

__all__ = ["Bfloat16Sampler", "CacheSampler", "Engine", "EngineSampler", "VLLMEngine", "Written"]
