"""Exchanges with a server over a network that stalls, breaks and costs money."""
