"""The first stage: fetch and open the source, convert it to the portable form, prove its signature, split the items."""
