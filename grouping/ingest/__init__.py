"""From the spool into the store: segments, lines, rows, and what needs more than its own span."""
