"""``retro serve``: a trained retrospective model behind HTTP, for agents in other processes and languages."""
