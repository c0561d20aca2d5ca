"""My method: UCE with a ridge of 1,000.

Replace this by a sentence that says what yours does.
"""

import rece


def erase(pipe, concept, *, target=" ", preserve=None, progress=True, lamb=1e3):
    """The edit that erases one concept or several. It reads the pipeline, and leaves it as it is."""
    start = {"lamb": lamb}
    return rece.erase(
        pipe, concept, target=target, preserve=preserve, rounds=0, start=start, relative=True, progress=progress
    )
