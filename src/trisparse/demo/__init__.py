"""`trisparse demo`: the whole path on one machine in ten minutes, from text to a report."""
