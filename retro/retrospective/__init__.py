"""The model that learns: how it reads an episode, samples reflections, is scored, and chooses among its samples."""
