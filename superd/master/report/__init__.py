"""What the master reports about itself: status, metrics, and answers to workers' queries."""
