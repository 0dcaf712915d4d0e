"""Bundles: models exported on one machine to be measured on another machine without torch."""
