"""How a round moves along: assigned, submitted, closed, and passed on by a relay."""
