"""The gallery over HTTP: what is answered, and what every request has to pass first."""
