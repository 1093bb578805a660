"""Load tests with Locust: see loadtests/README.md."""
