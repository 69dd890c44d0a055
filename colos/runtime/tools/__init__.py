"""The commands that look into living nodes: `colos ps`, `stack`, `trace` and `attach`; one file each.

They find what they look into by the run directory's files (`find`), so that a root that does not
answer hides nothing.
"""
