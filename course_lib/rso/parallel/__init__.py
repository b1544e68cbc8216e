"""One search that several processes share: each judges its part of every mini-batch.

Read `processes` first (who they are, what they must agree on), then `shared_memory` and
shared_memory.cpp (sums over the processes of one machine).
"""
