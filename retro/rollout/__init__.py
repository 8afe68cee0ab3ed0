"""The one loop of the project: play, fail, reflect, retry."""
