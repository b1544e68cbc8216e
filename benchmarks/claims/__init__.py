"""What the lessons say about training, measured over seeds.

A claim is a function of a seed in the module of its lesson. It trains what the lesson
compares and returns a number for each way:

    @claim("Networks trained with VAT are right more often.", below("plain", "VAT"))
    def vat_beats_plain(seed):
        return {"plain": ..., "VAT": ...}

`make claims` measures all of them and writes docs/results/claims.md. `python -m
benchmarks.claims vat-beats-plain` measures that one and keeps the rest of the page. A
lesson quotes a mean and its spread, as 93.9 ± 0.6, with a link to the claim's section;
tests/test_claims.py compares the two.

Read `core` first, then the claims of any lesson.
"""
