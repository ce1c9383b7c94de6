"""Who may send which requests, and how many: API keys, rate limits, addresses behind proxies, CORS."""
