"""Times of attention calls, each checked against the specification before it is taken."""
