"""The nouns of effbench: frozen dataclasses and plain helpers, standard library only. Start reading here.

`study` says what is measured, `run` what was measured, `estimate` what follows from it.
"""
