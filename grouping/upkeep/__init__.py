"""What keeps a store small: deleting rollouts, and writing the file anew."""
