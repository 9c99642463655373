"""The verbs of ``lpu``, one module each; ``cluster.cli`` puts them together."""
