"""The exercises, one module each: a forward line by line, its backward in single steps and short.

A module has LESSON, INPUTS, OUTPUT, HINTS, GRADES and BUGS; `forward`, the reference of all grades;
`steps`, the solution of the grade "easy"; `NAME_fwd` and `NAME_bwd`, the solution of "fused" and
"memory"; `library`, the library's own op on the same inputs; `example`, a small generic point.
"""
