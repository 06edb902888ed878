"""What each verb of the command line does. Heavy packages are imported when a verb is run."""
