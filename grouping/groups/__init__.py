"""Who is compared with whom: alignment, credit, groups as values, and what was left out and why."""
