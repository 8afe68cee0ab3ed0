"""``retro serve`` and ``retro mcp``: a trained retrospective model for agents in other processes and languages."""
