"""What a sampled reflection is worth to an algorithm: one file a term of the reward."""
