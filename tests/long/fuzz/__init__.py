"""Hostile input: every format that is read, fed with damaged samples: ``python -m tests.long.fuzz``."""
