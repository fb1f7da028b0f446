"""The request log: logged_request.py is one answered request and its row, request_log.py writes it from a server, log_files.py
keeps the folder within its bytes, log_reader.py reads it back."""
