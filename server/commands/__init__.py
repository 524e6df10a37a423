"""The commands of ``edge-server``, one file each."""
