"""Names of weights: how a file spells them, what other code bases call them, and the host's targets by all of them.

    spelling       a file's key: module path, role, adapter name; `canonical`, the form in which names meet
    renames        one weight's names in two code bases; `architectures` with tables/: those of each model family
    families       what family a set of names looks like
    target         where a change goes; `targets`: all of a host's, found by any spelling
"""
