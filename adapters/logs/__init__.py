"""Logs of other tools, as the tracer would have written them: one module for each format.

A format reads its objects one by one and says of each which span or score it is; ids are
made of the source's own, so that a file that is imported twice adds nothing.
"""
