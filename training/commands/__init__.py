"""The commands of training, one file per subject: each parses its options, calls what carries it out, and prints the result."""
