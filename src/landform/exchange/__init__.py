"""Files of other programs, read into landform's results and written from them; the hub."""
