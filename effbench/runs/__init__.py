"""Carry a plan out in worker processes, record every block, and read stored runs back."""
