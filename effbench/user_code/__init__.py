"""Handle what a user's model does to the process that runs it, and find the files that it consists of."""
