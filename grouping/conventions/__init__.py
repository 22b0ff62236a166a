"""What spans of other instrumentations mean: where each convention says something, and how it is read."""
