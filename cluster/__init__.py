"""Runs of LPU clusters: on actors of Ray or in this process, with metrics, traces and reports.

    from cluster import GenerateSettings, generate

    done = generate(GenerateSettings(prompt="def ", max_new_tokens=8, tp=2, in_process=True))
    print(done.text, done.result.cycles_per_token, done.result.digest)

What is listed is loaded when it is first used: ``import cluster`` loads neither numba nor Ray.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
