"""The terms of the reward of a sampled reflection, one in each file."""
