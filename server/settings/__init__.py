"""Every setting of the server, and where each comes from."""
