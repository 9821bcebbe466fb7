"""The learning world: small pictures, fifteen families of edits with exact answers, instructions in two languages."""
