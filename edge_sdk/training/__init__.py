"""The local steps of a round on this device, and the speed of what they use."""
