"""What keeps a device in a fleet while nobody looks: the journal of its work, and who runs it."""
