"""Signed adapter versions: channels, exports, and how they did on devices."""
