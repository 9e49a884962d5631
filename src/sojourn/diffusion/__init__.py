"""Noise paths, samplers and guides of walks."""
