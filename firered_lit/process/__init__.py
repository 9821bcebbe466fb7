"""What a process sees to beside its work: locks, its end from outside, its device, what surrounds it."""
