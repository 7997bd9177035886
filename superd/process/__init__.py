"""What a process of superd does to itself: fork, confine, daemonize. Used by every process."""
