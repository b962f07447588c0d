"""What both trainers agree on, in plain Python and NumPy. No arithmetic of training lives here."""
