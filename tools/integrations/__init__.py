"""What the tests of Fettle with other systems need: their own programs, built from Go modules, and how they are started."""
