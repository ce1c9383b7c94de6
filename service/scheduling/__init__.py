"""What runs when: the queue, the next batch, what a run costs, and the time of the event loop."""
