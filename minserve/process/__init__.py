"""What belongs to the whole process: how waiting threads wait, and what happens at its end."""
