"""Fast forms: the functions of `jaxnn.ops` rearranged for machines.

A module here defines `f_fwd` and `f_bwd` of the plain op of the same name, with the same signature
and the same results; the op is bound to it by `Op(..., fast="jaxnn.ops.fast.NAME")`. It may import
the plain module, and leave small sizes to it; the plain module knows of it only that name. A law in
`tests/test_ops.py` holds each to its plain form.
"""
