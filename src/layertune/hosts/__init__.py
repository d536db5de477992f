"""What two or more hosts need: plug-ins, networks by name, meta batches."""
