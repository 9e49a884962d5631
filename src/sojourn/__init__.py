"""Sojourn: a self-hosted generative studio."""
