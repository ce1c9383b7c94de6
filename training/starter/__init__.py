"""A first recipe for a CSV file: its columns are checked, and lengths and network chosen, with the reasons as comments."""
