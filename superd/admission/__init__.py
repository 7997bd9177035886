"""Admission: which clients are admitted, which datagrams answered, and the counters of both."""
