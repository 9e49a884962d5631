"""One file per lineage of models."""
