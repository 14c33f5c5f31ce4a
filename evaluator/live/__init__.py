"""The live scope: what a tick does with what arrived, with what waits, and with what is to be tried again."""
