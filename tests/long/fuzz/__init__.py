"""Hostile input: every format that is read, fed with damaged samples (``__main__`` runs it)."""
