"""From prompts and a policy to responses."""

from lit_align.generation.sampler import CacheSampler

__all__ = ["CacheSampler"]
