"""Conformance checks that anyone can run on a part of their own: what the rest of the package expects of it, said one by one."""
