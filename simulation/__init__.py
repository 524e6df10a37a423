"""Whole fleets in one process: the server's and the devices' own code, in virtual time."""
