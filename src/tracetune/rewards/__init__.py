"""Rewards that need more than a comparison: models that judge or rank, and penalties, all plain functions."""

from tracetune.rewards.comparing import ranker
from tracetune.rewards.judging import judge
from tracetune.rewards.penalties import length_penalty, tool_call_count, tool_penalty

__all__ = ["judge", "length_penalty", "ranker", "tool_call_count", "tool_penalty"]
