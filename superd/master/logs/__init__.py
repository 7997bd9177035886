"""The log and its sinks: standard error, files, syslog, the journal."""
