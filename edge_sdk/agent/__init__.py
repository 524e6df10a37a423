"""What keeps a device in its fleet while nobody looks: when it may train, and who runs it."""
