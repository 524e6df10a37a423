"""What travels between a device and its server; the one place both sides read it from."""
