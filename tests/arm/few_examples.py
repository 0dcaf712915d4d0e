"""A pytest plugin: under emulation Hypothesis tries a few examples where a test does not say how many."""

from hypothesis import settings

settings.register_profile("emulated", max_examples=10, deadline=None, derandomize=True)
settings.load_profile("emulated")
