"""Who is let in and what is answered, and the counts of it. Runs in workers; pure functions."""
