"""One client of OpenAI-compatible servers: what is sent, what is read, and what is told when it fails."""
