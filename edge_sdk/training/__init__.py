"""The local steps of a round on this device, within the memory they were given."""
