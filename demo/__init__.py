"""The demo: a fleet of devices fine-tunes a real language model on this machine."""
