"""Describe this machine and its processes: facts, noise, cores, energy meters, temporary folders, worker processes."""
