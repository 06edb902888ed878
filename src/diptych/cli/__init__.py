"""What each verb of the command line does, and its flags; heavy packages wait until it runs."""
