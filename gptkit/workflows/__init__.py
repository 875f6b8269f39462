"""Train, resume and generate as plain functions: here the stages are wired together."""
