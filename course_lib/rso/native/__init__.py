"""The incremental sweep in C++, compiled on the reader's machine.

Read `sweep` first (what one proposal asks for), then `lowering` (a plan becomes
programs), `operations` and `geometry` (what a program can hold), `program` (how it is
run); then structures.hpp, program.cpp, layers.hpp, convolutions.hpp and pool.hpp, in
that order.
"""
