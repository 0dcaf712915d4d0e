"""This machine and its processes: facts, noise, cores, meters, temporary folders, worker processes."""
