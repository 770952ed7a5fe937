"""Annotators: what labels the policy's responses."""

from lit_align.annotators.function import FunctionAnnotator, ScoreFunction

__all__ = ["FunctionAnnotator", "ScoreFunction"]
