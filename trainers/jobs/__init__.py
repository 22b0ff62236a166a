"""Trainers that learn by fine-tuning jobs of a service: `openai`, and `litellm` through that library.

A round is rollouts, groups, rows, one job, and its model as the next policy. Each
service is a file of its own, so that only the library in use has to be installed.
"""
