"""Who acts: a frozen language model, local or behind an OpenAI-compatible endpoint."""
