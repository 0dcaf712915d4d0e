"""Measure on many machines from one command: a scheduler, a worker process on each machine, and a conductor.

A run stays in a folder on its machine and grows by one launch at a time. The folder of the person who ordered it holds
a copy, which is a prefix of the machine's. Needs the extra ``effbench[fleet]``; `fleet.step` does not.
"""
