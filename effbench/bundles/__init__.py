"""Bundles: models exported on one machine to be measured on another, where torch is too heavy or does not run."""
