"""The commands of ``edge-sdk``, one file each."""
