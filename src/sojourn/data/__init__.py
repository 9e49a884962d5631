"""Getting data in: prepare, pack, read, augment."""
