"""A base model and its adapters as files, shapes and codes; without torch."""
