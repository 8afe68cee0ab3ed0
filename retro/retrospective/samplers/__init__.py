"""How one reflection is chosen: one file a kind."""
