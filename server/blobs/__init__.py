"""Tensor files, whole and on their way in: in a folder or an object store."""
