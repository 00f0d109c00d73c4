"""The plugin's options: where they are declared, checked and read into `Settings`."""
