"""What a command runs on: device, threads, processes, and where its sentences go."""
