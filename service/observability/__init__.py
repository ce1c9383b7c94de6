"""What an operator sees: metrics, log lines, how late the event loop is."""
