"""The front door: command line, settings, embedded servers, process supervisor."""
