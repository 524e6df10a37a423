"""What this machine says about itself, one kind of reading a file."""
