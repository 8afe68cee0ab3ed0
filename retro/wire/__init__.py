"""A client for OpenAI-compatible servers: its requests, the answers, and its error messages."""
