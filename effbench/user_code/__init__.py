"""What a user's model does to the process that runs it, and which files it consists of."""
