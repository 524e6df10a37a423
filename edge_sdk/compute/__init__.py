"""How a device computes and how fast: what plans choose among and count with."""
