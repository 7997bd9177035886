"""The confined process that accepts and serves clients. The master uses `channel` and `lifeline`,
the two ways in which it learns about a worker.
"""
