"""Feature networks behind one shape: pictures in, one row of numbers a picture out."""
