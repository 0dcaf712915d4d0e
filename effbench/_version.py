"""The version, in one place: the package, its metadata and every stored run read it here."""

__version__ = "0.4.0"
