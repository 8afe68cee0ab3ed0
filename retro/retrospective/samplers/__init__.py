"""Samplers, which choose one reflection among several; each kind has its own file."""
